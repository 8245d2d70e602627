"""Temporary names: each scratch folder, staged folder and unfinished file of this project gets its name here.

A process that is killed leaves what it had begun. ``doctor`` finds it by these names, so no other module
makes one; a test walks the tree. There are five kinds:

- a scratch folder in the system's folder for temporary files, named after its purpose;
- a staged folder beside its target, under a fixed name, so that the next run takes it over;
- a folder with an unfinished file, beside that file's place, under a name that no other process has;
- a new SQLite catalog beside its place, under a fixed name, which only the holder of its lock writes;
- an entry of a store's ``incoming``, which the store itself looks after.
"""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, cast

from ..schemas.errors import SourceUnreadable

_PREFIX = "meteora-"
_STAGED = ".partial"
_UNFINISHED = ".meteora-partial"
_UNFINISHED_CATALOG = ".new"
# What SQLite keeps beside a database.
_DATABASE_FILES = ("", "-journal", "-wal", "-shm")
# Beside a name as long as file systems take, 255 bytes, the longer temporary one could not be made.
_KEPT_CHARACTERS = 50


class Purpose(StrEnum):
    """The purpose of a scratch folder."""

    ADD = "add"
    DIFF = "diff"
    FIT = "fit"
    FUSE = "fuse"
    IMPORT = "import"
    MEMBER = "member"
    OUTLINE = "outline"
    PULL = "pull"
    PUSH = "push"
    SERVE = "serve"
    SIGN = "sign"
    VERIFY = "verify"


_SCRATCH = re.compile(rf"{_PREFIX}({'|'.join(Purpose)})-.+")


@contextmanager
def temporary_folder(purpose: Purpose) -> Iterator[Path]:
    """Yield a new folder below the system's folder for temporary files; it is deleted when the block ends.

    Raises:
        SourceUnreadable: none can be made there.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{purpose}-")
    except OSError as error:
        raise _no_room(error) from error
    with made as name:
        yield Path(name)


def temporary_file() -> BinaryIO:
    """Return an open file without a name, which is gone once it is closed.

    Raises:
        SourceUnreadable: none can be made there.
    """
    try:
        return cast(BinaryIO, tempfile.TemporaryFile())
    except OSError as error:
        raise _no_room(error) from error


def _no_room(error: OSError) -> SourceUnreadable:
    return SourceUnreadable(
        f"cannot make a folder for temporary files: {error.strerror or error}",
        hint="free some space there, or name another folder in the environment variable `TMPDIR`",
    )


def scratch_root() -> Path | None:
    """Return where scratch folders are made; None if the system has no such place."""
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        return None


def is_scratch(path: Path) -> bool:
    """Return whether a name is one that ``temporary_folder`` gives."""
    return _SCRATCH.fullmatch(path.name) is not None


def staged_path(target: Path) -> Path:
    """Return where a folder is written before it is moved to ``target``."""
    return target.with_name(f".{target.name}{_STAGED}")


def is_staged(path: Path) -> bool:
    """Return whether a name is one that ``staged_path`` gives."""
    return len(path.name) > len(_STAGED) + 1 and path.name.startswith(".") and path.name.endswith(_STAGED)


@contextmanager
def unfinished_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside a file that is to be made; it is deleted when the block ends."""
    with tempfile.TemporaryDirectory(
        dir=target.absolute().parent,
        prefix=f".{target.name[:_KEPT_CHARACTERS]}.",
        suffix=_UNFINISHED,
        # The file is whole by then, or its own failure is what counts; the doctor deletes what is left.
        ignore_cleanup_errors=True,
    ) as name:
        yield Path(name)


def is_unfinished(path: Path, *, of: str = "") -> bool:
    """Return whether ``unfinished_folder`` gives such a name, for any file or for the one called ``of``.

    Earlier versions gave such names to files, too.
    """
    return path.name.startswith(f".{of[:_KEPT_CHARACTERS]}") and path.name.endswith(_UNFINISHED)


def unfinished_catalog(catalog: Path) -> Path:
    """Return where a new SQLite catalog is made."""
    return catalog.with_name(catalog.name + _UNFINISHED_CATALOG)


def unfinished_catalog_files(catalog: Path) -> list[Path]:
    """Return every file that may be left of a new SQLite catalog that was not finished."""
    beside = unfinished_catalog(catalog)
    return [beside.with_name(beside.name + suffix) for suffix in _DATABASE_FILES]


def incoming_folder(incoming: Path) -> Path:
    """Make a new folder among what is on its way into a store, and return it."""
    return Path(tempfile.mkdtemp(dir=incoming))


def incoming_name() -> str:
    """Return a name that no other upload into a store has."""
    return uuid.uuid4().hex


def is_idle(path: Path, now: float, idle_seconds: float) -> bool:
    """Return whether a file or folder is this user's, and nothing in it changed for so long."""
    try:
        if path.is_symlink() or path.lstat().st_uid != os.geteuid():
            return False
        newest = max(each.lstat().st_mtime for each in (path, *path.rglob("*")))
    except OSError:
        # Gone meanwhile, or not to be looked into: left alone.
        return False
    return now - newest > idle_seconds
