"""Advisory locks between processes: held on a file, gone with the process that held them."""

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
