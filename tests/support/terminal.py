"""A program on a terminal of its own, where commands ask, converse, fold their tables and show progress."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import sys
import termios
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from support.patience import PATIENCE_SECONDS, wait_until
from support.warm import Popen, RuntimePopen

_LINES = 40


def run_in_terminal(
    arguments: Sequence[str | Path], *, environment: Mapping[str, str], columns: int, answer: bytes = b""
) -> tuple[int, str]:
    """Return the exit code of a program, and what it wrote to a terminal where ``answer`` was typed."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, columns, 0, 0))
    # Where these are set, the terminal is not asked.
    environment = {key: value for key, value in environment.items() if key not in ("COLUMNS", "LINES")}
    process = Popen(arguments, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.write(ours, answer)
    shown = b""
    # Reading a terminal whose other end is closed is an error on Linux, and the end elsewhere.
    with suppress(OSError):
        while data := os.read(ours, 1 << 16):
            shown += data
    os.close(ours)
    return process.wait(PATIENCE_SECONDS), shown.decode()


# Ctrl-C interrupts the processes of the session that the terminal belongs to.
_OWN_SESSION = """
import fcntl, os, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from meteora_registry.registry.cli.entry import main
main()
"""


class Conversation:
    """The program on a terminal that is its own, typed at and read in turns."""

    def __init__(
        self,
        *arguments: object,
        environment: Mapping[str, str],
        folder: Path | None = None,
        columns: int = 80,
    ) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, columns, 0, 0))
        left_out = ("COLUMNS", "LINES")
        self._process = RuntimePopen(
            [sys.executable, "-c", _OWN_SESSION, *map(str, arguments)],
            env={key: value for key, value in environment.items() if key not in left_out} | {"TERM": "dumb"},
            cwd=folder,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self._unread = b""
        self.shown = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(PATIENCE_SECONDS)
        os.close(self._ours)

    def type(self, keys: str) -> None:
        """Press keys; `\\x03` is Ctrl-C and `\\x04` Ctrl-D."""
        os.write(self._ours, keys.encode())

    def wait_for_the_line_editor(self) -> None:
        """Return when the program waits for keys; a Ctrl-C between its prompt and that is lost by `input`.

        The line editor sets the terminal first, and then sleeps until a key or a signal comes.
        """
        wait_until(lambda: not termios.tcgetattr(self._ours)[3] & termios.ICANON)
        wait_until(self._sleeps)

    def _sleeps(self) -> bool:
        # Of its first thread, behind the name of the program; only Linux shows it.
        state = Path(f"/proc/{self._process.pid}/stat")
        return not state.exists() or state.read_text().rpartition(") ")[2].startswith("S")

    def read_until(self, text: str) -> str:
        """Return what is shown up to a text, which must come."""
        wanted = text.encode().replace(b"\n", b"\r\n")
        while wanted not in self._unread:
            if not self._read():
                raise AssertionError(f"{text!r} did not come: {self.shown.decode()}")
        found, _, rest = self._unread.partition(wanted)
        self._unread = rest
        return _lines(found + wanted)

    def end(self) -> tuple[int, str]:
        """Return the exit code, and what is still shown."""
        while self._read():
            pass
        return self._process.wait(PATIENCE_SECONDS), _lines(self._unread)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._ours], [], [], PATIENCE_SECONDS)
        data = b""
        # The end of the other side is an error on Linux.
        with suppress(OSError):
            data = os.read(self._ours, 1 << 16) if ready else b""
        self._unread += data
        self.shown += data
        return bool(data)


def _lines(shown: bytes) -> str:
    return shown.decode().replace("\r\n", "\n")
