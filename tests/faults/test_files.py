"""Every way in which a file or a folder is written: whole, or as it was, at whatever call it ends."""

from __future__ import annotations

import errno
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from meteora_registry.files.scratch import is_staged, is_unfinished
from support import file_writers
from support.faults import Program, fail_from, interrupt_at, kill_at, run_command
from support.faults_calls import why_unavailable
from support.file_writers import NEW

OLD = b"old"
DISK = frozenset(
    {"write", "pwrite64", "openat", "mkdir", "fsync", "fdatasync", "rename", "link", "ftruncate"}
)


def is_database(target: Path) -> bool:
    with closing(sqlite3.connect(f"file:{target}?mode=ro", uri=True)) as database:
        return database.execute("SELECT count(*) FROM t").fetchone() == (0,)


def is_tree(target: Path) -> bool:
    return {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("file")} == {
        "file": NEW,
        "below/file": NEW,
    }


def is_new(target: Path) -> bool:
    return target.read_bytes() == NEW


# A program, whether something is there before, and whether what is there afterwards is what it writes.
WRITERS = {
    "replace": (file_writers.replace, True, is_new),
    "create": (file_writers.create, False, is_new),
    "create-database": (file_writers.create_database, False, is_database),
    "stage": (file_writers.stage, False, is_tree),
}


class Trial:
    """A writer and a folder of its own, which each run begins anew."""

    def __init__(
        self, folder: Path, program: Program, *, replaces: bool, is_whole: Callable[[Path], bool]
    ) -> None:
        self.target = folder / "place" / "target"
        self.program = program
        self.replaces = replaces
        self.is_whole = is_whole
        self.begin()
        undisturbed = run_command([self.target], program=program)
        assert undisturbed.code == 0
        assert is_whole(self.target)
        assert [path.name for path in self.target.parent.iterdir()] == ["target"]
        self.calls = undisturbed.calls

    def begin(self) -> None:
        shutil.rmtree(self.target.parent, ignore_errors=True)
        self.target.parent.mkdir()
        if self.replaces:
            self.target.write_bytes(OLD)

    def check(self) -> bool:
        """Check that the old or the new is there, never half of one, and return whether it is the new."""
        if not self.target.exists():
            assert not self.replaces
            return False
        if self.replaces and self.target.read_bytes() == OLD:
            return False
        assert self.is_whole(self.target)
        return True

    def leftovers(self) -> list[Path]:
        return [path for path in self.target.parent.iterdir() if path != self.target]


@pytest.fixture(scope="module", params=WRITERS.values(), ids=WRITERS)
def trial(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    if reason := why_unavailable():
        pytest.skip(reason)
    program, replaces, is_whole = request.param
    return Trial(tmp_path_factory.mktemp("writers"), program, replaces=replaces, is_whole=is_whole)


def test_a_writer_killed_at_any_call_leaves_the_old_or_the_new_and_what_the_doctor_knows(
    trial: Trial,
) -> None:
    seen = set()
    for number in range(1, len(trial.calls) + 1):
        trial.begin()
        outcome = run_command([trial.target], kill_at(number), program=trial.program)
        assert outcome.code == -signal.SIGKILL
        seen.add(trial.check())
        assert all(is_staged(path) or is_unfinished(path) for path in trial.leftovers())
        is_there = trial.target.exists() and not trial.replaces
        assert run_command([trial.target], program=trial.program).code == (2 if is_there else 0)
        assert trial.check()
    assert seen == {False, True}


def test_a_writer_interrupted_at_any_call_leaves_the_old_or_the_new_and_nothing_else(trial: Trial) -> None:
    for number in range(1, len(trial.calls) + 1):
        trial.begin()
        run_command([trial.target], interrupt_at(number), program=trial.program)
        trial.check()
        # A folder that was just made and not yet known is left to the doctor.
        assert all(is_staged(path) or is_unfinished(path) for path in trial.leftovers())


@pytest.mark.parametrize("error_number", [errno.ENOSPC, errno.EIO], ids=["full", "failing"])
def test_a_writer_whose_disk_gives_out_says_so_and_leaves_the_old_or_the_new(
    trial: Trial, error_number: int
) -> None:
    for number, name in enumerate(trial.calls, start=1):
        if name not in DISK:
            continue
        trial.begin()
        outcome = run_command([trial.target], fail_from(number, error_number, DISK), program=trial.program)
        assert outcome.code == 2, (number, name, outcome)
        trial.check()
        assert trial.leftovers() == []
