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
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from support.hub import TOKEN, LoopbackHub
from support.patience import PATIENCE_SECONDS
from support.terminal import run_in_terminal
from support.warm import Popen, enter, warm_context

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
        self._commands: Connection | None = None
        self._process: BaseProcess | None = None

    def run(self, folder: Path, arguments: list[str], **changes: str) -> Result:
        """Carry out a command in the process that is there for it."""
        if self._commands is None:
            ours, theirs = warm_context().Pipe()
            self._process = warm_context().Process(
                target=_carry_out, args=(theirs, self.folder, self.environment, self.prelude), daemon=True
            )
            self._process.start()
            theirs.close()
            self._commands = ours
        files = [self.folder / "out", self.folder / "err"]
        self._commands.send((folder, arguments, changes, files))
        code = self._commands.recv()
        return Result(code, files[0].read_text(), files[1].read_text())

    def start(
        self, folder: Path, arguments: list[str], *, prelude: str = "", **changes: str
    ) -> subprocess.Popen[str]:
        """Begin a command in a process of its own, after a line of Python."""
        return Popen(
            [sys.executable, "-c", f"{prelude}\n{START}", *arguments],
            env=self.environment | changes,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End the process."""
        if self._commands is not None and self._process is not None:
            self._commands.close()
            self._process.join(PATIENCE_SECONDS)


def _carry_out(commands: Connection, folder: Path, environment: dict[str, str], prelude: str) -> None:
    """Carry out commands; all output of them or of any library goes to the files that each names."""
    enter(folder, environment)
    exec(prelude, {})
    from meteora_registry.registry.cli.main import run

    sleep = time.sleep
    vars(time)["sleep"] = lambda seconds: sleep(seconds * float(os.environ["TEST_PAUSES"]))
    with suppress(EOFError):
        while True:
            place, arguments, changes, files = commands.recv()
            for target, path in enumerate(files, start=1):
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
                os.dup2(file, target)
                os.close(file)
            before = dict(os.environ)
            os.environ.update(changes)
            os.chdir(place)
            try:
                code = run(arguments)
            except SystemExit as ended:
                code = ended.code  # type: ignore[assignment]
            sys.stdout.flush()
            sys.stderr.flush()
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
