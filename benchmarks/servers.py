"""Servers of one benchmark run: started on a free port of loopback, watched, ended."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

START_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Attributes:
        process: the process that was started; its children may do the work.
        url: its address, without a path.
    """

    process: subprocess.Popen[bytes]
    url: str

    def memory_bytes(self) -> int:
        """Return the memory of the process and its children that is in use."""
        process = psutil.Process(self.process.pid)
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))

    def kill(self) -> None:
        """End the process and its children at once, as a crash would."""
        process = psutil.Process(self.process.pid)
        for each in (*process.children(recursive=True), process):
            each.kill()
        self.process.wait()


@contextmanager
def running(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str], health: str = "/health"
) -> Iterator[Server]:
    """Run a server until the block ends; ``{port}`` in the command becomes a free port.

    Raises:
        RuntimeError: it ended, or gave no answer in time; the end of its log is in the message.
    """
    port = free_port()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [part.replace("{port}", str(port)) for part in command],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**environment},
        )
    server = Server(process, f"http://127.0.0.1:{port}")
    try:
        _wait_for(server, health, log)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()


def free_port() -> int:
    """Return a port without a listener."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait_for(server: Server, health: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(server.url + health, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    end = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise RuntimeError(f"`{server.process.args!r}` did not answer at {server.url}{health}:\n{end}")


def say(*words: object) -> None:
    """Print progress."""
    print(*words, file=sys.stderr, flush=True)
