"""Programs that write one file or folder each, for faults at every one of their calls."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from meteora_registry.files.staging import staged_folder
from meteora_registry.files.writing import whole_file, write_errors, write_whole
from meteora_registry.schemas.errors import MeteoraError

NEW = b"new" * 10_000


def replace(words: list[str]) -> int:
    """Write a file in place of the one that may be there."""
    return _done(lambda: write_whole(Path(words[0]), NEW))


def create(words: list[str]) -> int:
    """Write a file where none may be."""

    def write(target: Path) -> None:
        with whole_file(target, overwrite=False) as path, write_errors(target):
            path.write_bytes(NEW)

    return _done(lambda: write(Path(words[0])))


def create_database(words: list[str]) -> int:
    """Have SQLite write a file where none may be, with its journal beside it."""

    def write(target: Path) -> None:
        with (
            whole_file(target, overwrite=False) as path,
            write_errors(target),
            closing(sqlite3.connect(path)) as database,
        ):
            database.execute("CREATE TABLE t (x)")

    try:
        return _done(lambda: write(Path(words[0])))
    except sqlite3.Error:
        return 2


def stage(words: list[str]) -> int:
    """Make a folder with a file and a folder in it."""

    def make(target: Path) -> None:
        with staged_folder(target) as folder:
            (folder / "file").write_bytes(NEW)
            (folder / "below").mkdir()
            (folder / "below" / "file").write_bytes(NEW)

    return _done(lambda: make(Path(words[0])))


def _done(act: Callable[[], None]) -> int:
    try:
        act()
    except MeteoraError as error:
        return error.exit_code
    return 0
