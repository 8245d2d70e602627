"""Advisory locks between processes, which end with the process that holds them.

A lock is held on a file of its own, or on the very folder that a process works in, so that the folder of a
process that died is known from one that is in use. No lock here reaches another machine.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..schemas.errors import SourceUnreadable


@contextmanager
def hold_lock(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock on ``path``, waiting for it; many may share it, or one have it alone.

    The file is created when missing and stays: removing it would let two processes hold "the" lock.

    Raises:
        SourceUnreadable: the file cannot be made or opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise SourceUnreadable(
            f"the lock `{path}` cannot be taken: {error.strerror or error}",
            hint="check the permissions and the free space of its folder, or name another home with `--home`",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def claim_folder(folder: Path, *, waits: bool = False) -> int:
    """Lock a folder that this process works in, and return the descriptor, whose closing ends the lock.

    Raises:
        BlockingIOError: another process holds it, and this one does not wait; or its holder moved it away.
        OSError: it cannot be opened, or is a link.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        _check_still_there(descriptor, folder)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_still_there(descriptor: int, folder: Path) -> None:
    if not os.path.samestat(os.fstat(descriptor), folder.lstat()):
        # Between opening and locking it, its holder moved it to its place.
        raise BlockingIOError


def is_abandoned(path: Path) -> bool:
    """Return whether a file or folder can be opened and no process holds it."""
    try:
        claim = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(claim)
    return True
