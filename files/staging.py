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

from ..schemas.bundle import MANIFEST_FILE
from ..schemas.errors import MeteoraError, SourceUnreadable, UsageError
from .reading import real_path
from .scratch import staged_path


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A new empty folder; on leaving without an exception it becomes ``target``.

    Raises:
        UsageError: ``target`` cannot be a new folder (``check_target``), or another process is making it.
        SourceUnreadable: the folder cannot be made, or the disk is full or fails.
    """
    check_target(target)
    target = real_path(target)
    staging = staged_path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = _claim(staging)
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        yield staging
        _sync_tree(staging)
        check_target(target)
        staging.rename(target)
    except BaseException as error:
        # Not after the rename: then another process may be staging here already.
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError):
            raise _unwritable(target, error) from error
        raise
    finally:
        os.close(lock)
    try:
        _sync(target.parent)
    except OSError as error:
        raise SourceUnreadable(
            f"`{target}` stands whole, but its disk does not confirm it: {error.strerror or error}",
            hint="check the disk, then give the same command again",
        ) from error


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A new empty folder where ``staged_folder`` would write, and claimed like it; gone when the block ends.

    Raises:
        UsageError: another process is making ``target``.
        SourceUnreadable: the folder cannot be made, or the disk is full.
    """
    target = real_path(target)
    staging = staged_path(target)
    try:
        lock = _claim(staging)
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            os.close(lock)
    except OSError as error:
        raise _unwritable(target, error) from error


def check_target(target: Path) -> None:
    """Pass if a new folder can be put there.

    Raises:
        UsageError: something is there, it lies inside a bundle, or its name cannot be recorded.
    """
    try:
        str(target.absolute()).encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(
            f"the path {str(target)!a} is not valid UTF-8", hint="choose another path with `--out`"
        ) from None
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UsageError(f"`{target}` exists and is no folder", hint="choose another path with `--out`")
    if target.is_dir() and any(target.iterdir()):
        raise UsageError(
            f"`{target}` exists and is not empty", hint="choose another path with `--out`, or remove it first"
        )
    around = next((each for each in real_path(target).parents if (each / MANIFEST_FILE).is_file()), None)
    if around is not None:
        raise UsageError(
            f"`{target}` lies inside the bundle `{around}`, which holds only what its manifest lists",
            hint="choose another path with `--out`",
        )


def _unwritable(target: Path, error: OSError) -> OSError:
    # Ours say what happened, though it had nothing to do with this folder: a Hub that does not answer.
    if isinstance(error, MeteoraError):
        return error
    return SourceUnreadable(
        f"cannot write `{target}`: {error.strerror or error}",
        hint="check the path, its permissions and the free space; nothing was left in its place",
    )


def _claim(staging: Path) -> int:
    # Locked before it is emptied: whoever holds the lock is still writing there.
    if staging.is_symlink():
        raise UsageError(f"`{staging}` is a symbolic link, expected a folder of ours", hint="remove it")
    staging.mkdir(exist_ok=True)
    lock = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _check_still_there(lock, staging)
        for entry in staging.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    except (BlockingIOError, FileNotFoundError):
        os.close(lock)
        raise UsageError(
            f"another process is writing `{staging}` at this moment",
            hint="wait for it, or choose another path",
        ) from None
    except BaseException:
        os.close(lock)
        raise
    return lock


def _check_still_there(lock: int, staging: Path) -> None:
    if not os.path.samestat(os.fstat(lock), staging.lstat()):
        # Its maker moved it into place after we had opened it.
        raise BlockingIOError


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
