"""Files from outside, opened for reading without being led to another place.

A folder is opened once, and what it holds is opened relative to that descriptor and without following a
link: what was listed cannot be exchanged for a link, nor the folder for another, before it is read. Only
regular files are opened, since a pipe or a device might block for ever, and no more is read than was asked
for. What the bytes mean is the caller's affair.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ELOOP
from pathlib import Path
from typing import BinaryIO

from ..schemas.base_name import find_snapshot
from ..schemas.errors import MeteoraError, SourceUnreadable
from ..schemas.quotation import escape

# A path is shown whole, for a person has to find the file; no path that can be opened is longer.
_MAX_PATH_CHARACTERS = 4096


def real_path(path: Path) -> Path:
    """Return the absolute path without symbolic links; of a link to itself, the path of that link."""
    # `Path.resolve` raises RuntimeError for such a loop, before Python 3.13.
    return Path(os.path.realpath(path))


def own_place(path: Path) -> Path:
    """Return the absolute path of a file or folder itself: of a link its own place, not where it leads."""
    place = Path(os.path.abspath(path))  # noqa: PTH100 - `..` goes, and a link in the last part stays
    return real_path(place.parent) / place.name


def cached_blob(path: Path) -> Path | None:
    """Return the file that a link in a snapshot of a Hub cache stands for; None for any other path.

    That is a file in the ``blobs`` folder of the same repository; a link to any other place is not one.
    """
    place = real_path(path.parent)
    snapshot = find_snapshot(place)
    if snapshot is None:
        return None
    blobs = snapshot.root / "blobs"
    try:
        target = Path(os.path.normpath(place / path.readlink()))
    except (OSError, ValueError):
        return None
    return target if target.parent == blobs and not blobs.is_symlink() else None


@contextmanager
def open_folder(path: Path, *, hint: str | None = None) -> Iterator[int]:
    """Yield the descriptor of a folder, which is open within the block.

    Raises:
        SourceUnreadable: it is missing, is not a folder, or cannot be read; with the ``hint``.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, hint) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_regular(path: Path | str, *, folder: int | None = None, follows_links: bool = False) -> BinaryIO:
    """Open a regular file for reading.

    Args:
        path: the file; a name in ``folder`` if that is given.
        folder: the descriptor of an open folder.
        follows_links: whether ``path`` may be a symbolic link.

    Raises:
        SourceUnreadable: it is missing, is not a regular file, or cannot be read.
    """
    # A pipe without a writer would block here but for O_NONBLOCK.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follows_links else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags, dir_fd=folder)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == ELOOP and not follows_links:
            raise SourceUnreadable(f"{_quote(path)} is a symbolic link, which is never followed") from error
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceUnreadable(f"{_quote(path)} is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Return the bytes of a file of at most ``max_bytes``; it may be a link.

    Raises:
        SourceUnreadable: it is missing, too large, or cannot be read.
    """
    # In a Hub cache every file is a link; the bytes are judged by their digests.
    data = read_start(path, max_bytes, follows_links=True)
    if len(data) > max_bytes:
        raise SourceUnreadable(f"{_quote(path)} has more than {max_bytes} bytes")
    return data


def read_start(
    path: Path | str, max_bytes: int, *, folder: int | None = None, follows_links: bool = False
) -> bytes:
    """Return the first ``max_bytes + 1`` bytes of a regular file, so that one too many shows.

    The file is opened as by ``open_regular``.

    Raises:
        SourceUnreadable: it is missing, is not a regular file, or cannot be read.
    """
    with read_errors(path), open_regular(path, folder=folder, follows_links=follows_links) as file:
        return file.read(max_bytes + 1)


@contextmanager
def read_errors(path: Path | str) -> Iterator[None]:
    """Raise the system's errors of the block, which reads from ``path``, as ``SourceUnreadable``."""
    try:
        yield
    except MeteoraError:
        # Some of ours are OSErrors too, and name what they mean already.
        raise
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path | str, error: OSError | ValueError, hint: str | None = None) -> SourceUnreadable:
    # A name with a zero byte is a ValueError.
    cause = getattr(error, "strerror", None) or str(error)
    return SourceUnreadable(f"{_quote(path)} cannot be read: {cause}", hint=hint)


def _quote(path: Path | str) -> str:
    return f"`{escape(str(path), limit=_MAX_PATH_CHARACTERS)}`"
