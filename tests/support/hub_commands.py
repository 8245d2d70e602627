"""The real command line with the real client, in processes of their own, against the Hub on loopback.

Of their own because huggingface_hub reads HF_ENDPOINT and HF_HUB_OFFLINE when it is imported, and this
process is offline. One process may carry out many commands, which saves their first imports.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from support import warm
from support.hub import TOKEN, LoopbackHub
from support.patience import PATIENCE_SECONDS
from support.terminal import run_in_terminal
from support.unsynced import wait_for_no_disk
from support.warm import enter

_KEPT = ("PATH", "PYTHONPATH", "PYTHONSAFEPATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
# The program, as code for a process of Python.
START = "from meteora_registry.registry.cli.main import main; main()"


@dataclass(frozen=True)
class Result:
    """The output of a command, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


def _result(code: int, files: list[Path]) -> Result:
    return Result(code, files[0].read_text(), files[1].read_text())


@dataclass(frozen=True)
class Fork:
    """A command that was begun, in a process whose output goes to two files."""

    process: int
    files: list[Path]
    order: Callable[[object], int]

    def finish(self, *, interrupt: bool = False) -> Result:
        """Return the result when it has ended; with ``interrupt`` after Ctrl-C."""
        if interrupt:
            os.kill(self.process, signal.SIGINT)
        return _result(self.order(self.process), self.files)


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
            "TEST_PAUSES": "0.01",
            **changes,
        }
        self._commands: Connection | None = None
        self._process: BaseProcess | None = None
        self._forks = 0

    def run(self, folder: Path, arguments: list[str], **changes: str) -> Result:
        """Carry out a command in the process that is there for it."""
        files = self._files("")
        return _result(self._order((folder, arguments, changes, files, None)), files)

    def fork(self, folder: Path, arguments: list[str], prelude: str = "") -> Fork:
        """Begin a command in a copy of that process, after some Python."""
        self._forks += 1
        files = self._files(f"-{self._forks}")
        return Fork(self._order((folder, arguments, {}, files, prelude)), files, self._order)

    def run_anew(self, folder: Path, arguments: list[str], **changes: str) -> Result:
        """Carry out a command in a process that reads these variables when it imports."""
        done = warm.run(
            [sys.executable, "-c", START, *arguments],
            env=self.environment | changes,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def _files(self, number: str) -> list[Path]:
        return [self.folder / f"{name}{number}" for name in ("out", "err")]

    def _order(self, order: object) -> int:
        if self._commands is None:
            ours, theirs = warm.warm_context().Pipe()
            self._process = warm.warm_context().Process(
                target=_carry_out, args=(theirs, self.folder, self.environment, self.prelude), daemon=True
            )
            self._process.start()
            theirs.close()
            self._commands = ours
        self._commands.send(order)
        assert self._commands.poll(PATIENCE_SECONDS), "the command did not end"
        return int(self._commands.recv())

    def close(self) -> None:
        """End the process."""
        if self._commands is not None and self._process is not None:
            self._commands.close()
            self._process.join(PATIENCE_SECONDS)


def _carry_out(commands: Connection, folder: Path, environment: dict[str, str], prelude: str) -> None:
    """Carry out commands; all output of them or of any library goes to the files that each names."""
    enter(folder, environment)
    wait_for_no_disk()
    exec(prelude, {})
    from meteora_registry.registry.cli.main import run

    sleep = time.sleep
    vars(time)["sleep"] = lambda seconds: sleep(seconds * float(os.environ["TEST_PAUSES"]))
    # What was imported again for the environment.
    from support.new_catalogs import shared_statements

    with shared_statements(), suppress(EOFError):
        while True:
            order = commands.recv()
            if isinstance(order, int):
                commands.send(os.waitstatus_to_exitcode(os.waitpid(order, 0)[1]))
                continue
            place, arguments, changes, files, prelude_of_copy = order
            if prelude_of_copy is not None:
                if process := os.fork():
                    commands.send(process)
                    continue
                exec(prelude_of_copy, {})
            before = dict(os.environ)
            os.environ.update(changes)
            os.chdir(place)
            for target, path in enumerate(files, start=1):
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
                os.dup2(file, target)
                os.close(file)
            try:
                code = run(arguments)
            except SystemExit as ended:
                code = ended.code  # type: ignore[assignment]
            sys.stdout.flush()
            sys.stderr.flush()
            if prelude_of_copy is not None:
                os._exit(code)
            os.environ.clear()
            os.environ.update(before)
            commands.send(code)


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

    def start(self, *arguments: object) -> Fork:
        """Begin a command in a process of its own."""
        return self.machine.fork(self.folder, self._arguments(arguments))

    def run_alone(self, *arguments: object, prelude: str = "", **changes: str) -> Result:
        """Carry out a command in a process of its own, after some Python or with other variables."""
        if changes:
            return self.machine.run_anew(self.folder, self._arguments(arguments), **changes)
        return self.machine.fork(self.folder, self._arguments(arguments), prelude).finish()

    def run_python(self, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a Python program where the commands run."""
        return warm.run(
            [sys.executable, "-c", code, *arguments],
            cwd=self.folder,
            env=self.machine.environment,
            capture_output=True,
            text=True,
            check=False,
        )

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
