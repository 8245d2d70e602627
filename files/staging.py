"""A folder that appears whole or not at all.

Everything is written into a hidden folder beside the target and moved into place by one rename. A
process that dies leaves only the hidden folder, which the next run for the same target takes over:
a lock on it shows whether its maker still runs. What is in the folder, and where else a folder may not be
made, is known elsewhere (``bundle.files``).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..schemas.errors import UsageError
from .locks import claim_folder
from .reading import real_path
from .scratch import staged_path
from .writing import confirm_name, flush_tree, write_errors

_HINT = "check the path, its permissions and the free space; nothing was left in its place"


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yield a new empty folder, which becomes ``target`` when the block ends without an exception.

    Raises:
        UsageError: ``target`` cannot be a new folder (``check_new_folder``), or another process is making it.
        SourceUnreadable: the folder cannot be made, or the disk is full or fails.
    """
    check_new_folder(target)
    target = real_path(target)
    with write_errors(target, hint=_HINT):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _claimed(staged_path(target)) as staging:
            yield staging
            flush_tree(staging)
            check_new_folder(target)
            staging.rename(target)
    confirm_name(target)


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """Yield a new empty folder where ``staged_folder`` would write, claimed like it; deleted at the end.

    Raises:
        UsageError: another process is making ``target``.
        SourceUnreadable: the folder cannot be made, or the disk is full.
    """
    target = real_path(target)
    with write_errors(target, hint=_HINT), _claimed(staged_path(target)) as staging:
        yield staging
        shutil.rmtree(staging, ignore_errors=True)


def check_new_folder(target: Path) -> None:
    """Pass if a new folder can be put there.

    Raises:
        UsageError: something is there, or its name cannot be recorded.
    """
    try:
        str(target.absolute()).encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(
            f"the path {str(target)!a} is not valid UTF-8", hint="choose another path with `--out`"
        ) from None
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UsageError(f"`{target}` exists and is not a folder", hint="choose another path with `--out`")
    if target.is_dir() and any(target.iterdir()):
        raise UsageError(
            f"`{target}` exists and is not empty", hint="choose another path with `--out`, or remove it first"
        )


@contextmanager
def _claimed(staging: Path) -> Iterator[Path]:
    """Yield the hidden folder, empty and locked; after an exception it is deleted."""
    if staging.is_symlink():
        raise UsageError(f"`{staging}` is a symbolic link, expected a folder of ours", hint="remove it")
    claim = _claim(staging)
    try:
        yield staging
    except BaseException:
        # Not after the rename, for then another process may be staging here already.
        shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        os.close(claim)


def _claim(staging: Path) -> int:
    staging.mkdir(exist_ok=True)
    try:
        # Locked before it is emptied: a process that holds the lock is still writing there.
        claim = claim_folder(staging)
        try:
            _empty(staging)
        except BaseException:
            os.close(claim)
            raise
    except (BlockingIOError, FileNotFoundError):
        raise UsageError(
            f"another process is writing `{staging}` at this moment",
            hint="wait for it, or choose another path",
        ) from None
    return claim


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
