"""The real command line with the real client, in processes of their own, against the Hub on loopback.

Of their own because huggingface_hub reads HF_ENDPOINT and HF_HUB_OFFLINE when it is imported, and this
process is offline. One process may carry out many commands, which saves importing torch for each.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.hub import TOKEN, LoopbackHub
from support.patience import PATIENCE_SECONDS
from support.terminal import run_in_terminal

_KEPT = ("PATH", "PYTHONPATH", "PYTHONSAFEPATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
# The program, as code for a process of Python.
START = "from meteora_registry.registry.cli.main import main; main()"
# Carries out one command a line; all output of it or of any library goes to the files named in that line.
_MANY = """
import json, os, sys, time
from meteora_registry.registry.cli.main import run
answers = os.fdopen(os.dup(1), "w")
sleep = time.sleep
time.sleep = lambda seconds: sleep(seconds * float(os.environ["TEST_PAUSES"]))
for line in sys.stdin:
    command = json.loads(line)
    files = [os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC) for path in command["files"]]
    for target, file in enumerate(files, start=1):
        os.dup2(file, target)
        os.close(file)
    before = dict(os.environ)
    os.environ.update(command["environment"])
    os.chdir(command["folder"])
    try:
        code = run(command["arguments"])
    except SystemExit as exit:
        code = exit.code
    sys.stdout.flush(), sys.stderr.flush()
    os.environ.clear()
    os.environ.update(before)
    print(json.dumps(code), file=answers, flush=True)
"""


@dataclass(frozen=True)
class Result:
    """The output of a command, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


class Machine:
    """A machine's own folders, and a process on it that carries out commands."""

    def __init__(self, folder: Path, endpoint: str, *, prelude: str = "", **changes: str) -> None:
        self.folder = folder
        self.prelude = prelude
        self.hub_home = folder / "huggingface"
        self.scratch = folder / "tmp"
        self.scratch.mkdir(parents=True)
        kept = {key: value for key, value in os.environ.items() if key in _KEPT}
        self.environment = kept | {
            "HOME": str(folder),
            "HF_HOME": str(self.hub_home),
            "HF_ENDPOINT": endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "TMPDIR": str(self.scratch),
            "NO_PROXY": "127.0.0.1",
            # Of the pauses before a question is asked again, how much is waited for.
            "TEST_PAUSES": "0.1",
            **changes,
        }
        self._process: subprocess.Popen[str] | None = None

    def run(self, folder: Path, arguments: list[str], **changes: str) -> Result:
        """Carry out a command in the process that is there for it."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"{self.prelude}\n{_MANY}"],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        files = [self.folder / "out", self.folder / "err"]
        command = {
            "arguments": arguments,
            "folder": str(folder),
            "environment": changes,
            "files": list(map(str, files)),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(command), file=self._process.stdin, flush=True)
        code = json.loads(self._process.stdout.readline())
        return Result(code, files[0].read_text(), files[1].read_text())

    def start(
        self, folder: Path, arguments: list[str], *, prelude: str = "", **changes: str
    ) -> subprocess.Popen[str]:
        """Begin a command in a process of its own, after a line of Python."""
        return subprocess.Popen(
            [sys.executable, "-c", f"{prelude}\n{START}", *arguments],
            env=self.environment | changes,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate(timeout=PATIENCE_SECONDS)


@dataclass
class Workplace:
    """A folder of its own with a home, on a machine that others may share."""

    folder: Path
    machine: Machine

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def _arguments(self, arguments: tuple[object, ...]) -> list[str]:
        return ["--home", str(self.home), *map(str, arguments)]

    def run(self, *arguments: object, **changes: str) -> Result:
        """Carry out a command."""
        return self.machine.run(self.folder, self._arguments(arguments), **changes)

    def start(self, *arguments: object, prelude: str = "", **changes: str) -> subprocess.Popen[str]:
        """Begin a command in a process of its own."""
        return self.machine.start(self.folder, self._arguments(arguments), prelude=prelude, **changes)

    def run_alone(self, *arguments: object, prelude: str = "", **changes: str) -> Result:
        """Carry out a command in a process of its own, such as with another offline mode."""
        return finish(self.start(*arguments, prelude=prelude, **changes))

    def run_in_terminal(self, *arguments: object) -> tuple[int, str]:
        """Return the exit code of a command on a terminal of 120 columns, and what it drew there."""
        program = [sys.executable, "-c", START, *self._arguments(arguments)]
        return run_in_terminal(program, environment=self.machine.environment, columns=120)

    def blobs(self) -> set[str]:
        """Return the digests of the blobs in the store; other files but the lock and marks by their paths."""
        folder = self.home / "blobs"
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        return {
            name.removeprefix("sha256/").replace("/", "")
            for name in names - {"lock"}
            if not name.startswith("catalogs/")
        }

    def recorded(self) -> set[str]:
        """Return the digests that the catalog refers to."""
        with closing(sqlite3.connect(self.home / "catalog.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            return {digest for (digest,) in connection.execute("SELECT sha256 FROM adapter_files")}

    def assert_whole(self) -> None:
        """Store and catalog agree, and no scratch file was left."""
        assert self.blobs() == self.recorded()
        assert list(self.machine.scratch.iterdir()) == []


def finish(process: subprocess.Popen[str], *, interrupt: bool = False) -> Result:
    """Return the result of a command; with ``interrupt`` after Ctrl-C."""
    if interrupt:
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    return Result(process.returncode, out, err)


@contextmanager
def machine(folder: Path, hub: LoopbackHub, *, prelude: str = "", **changes: str) -> Iterator[Machine]:
    """Yield a machine that knows this Hub and has a token that may write there; Python may come first."""
    made = Machine(folder, hub.url, prelude=prelude, **changes)
    try:
        yield made
    finally:
        made.close()


def workplace(folder: Path, on: Machine, catalog: Path) -> Workplace:
    """Return a workplace with a copy of an empty catalog, which takes a while to make."""
    made = Workplace(folder, on)
    made.home.mkdir(parents=True)
    shutil.copyfile(catalog, made.home / "catalog.db")
    return made
