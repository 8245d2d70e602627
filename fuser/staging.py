"""A folder that appears whole or not at all.

Everything is written into a hidden folder beside the target and moved into place by one rename. A
process that dies leaves only the hidden folder, which the next run for the same target takes over:
a lock on it says whether its maker still lives.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..schemas.errors import SourceUnreadable, UsageError


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A new empty folder; on leaving without an exception it becomes ``target``.

    Raises:
        UsageError: ``target`` exists and is not empty, or another process is making it.
        SourceUnreadable: the folder cannot be made, or the disk is full.
    """
    target = target.absolute()
    _check_target(target)
    staging = target.parent / f".{target.name}.partial"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = _claim(staging)
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        yield staging
        _sync_tree(staging)
        _check_target(target)
        staging.rename(target)
        _sync(target.parent)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(lock)


def _unwritable(target: Path, error: OSError) -> OSError:
    if isinstance(error, SourceUnreadable):
        return error
    return SourceUnreadable(
        f"cannot write `{target}`: {error.strerror or error}",
        hint="check the free space and the permissions; nothing was left in its place",
    )


def _check_target(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UsageError(f"`{target}` exists and is no folder", hint="choose another path with `--out`")
    if target.is_dir() and any(target.iterdir()):
        raise UsageError(
            f"`{target}` exists and is not empty", hint="choose another path with `--out`, or remove it first"
        )


def _claim(staging: Path) -> int:
    # Locked before it is emptied: whoever holds the lock is still writing there.
    if staging.is_symlink():
        raise UsageError(f"`{staging}` is a symbolic link, expected a folder of ours", hint="remove it")
    staging.mkdir(exist_ok=True)
    lock = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UsageError(
            f"another process is writing `{staging}` at this moment",
            hint="wait for it, or choose another path",
        ) from None
    for entry in staging.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    return lock


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            _sync(Path(root, name))
        _sync(Path(root))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
