"""Files opened for reading without being led anywhere else.

A folder is opened once, and what lies in it is opened relative to that descriptor and without
following a link: what was listed cannot be exchanged for a link, nor the folder for another, before
it is read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ELOOP
from pathlib import Path
from typing import BinaryIO

from ..schemas.errors import SourceUnreadable
from ..schemas.quotation import quote_name


def real_path(path: Path) -> Path:
    """Return the absolute path without symbolic links; of a link to itself, the path of that link."""
    # `Path.resolve` raises RuntimeError for such a loop, before Python 3.13.
    return Path(os.path.realpath(path))


@contextmanager
def open_folder(path: Path) -> Iterator[int]:
    """The descriptor of a folder, which is open within the block.

    Raises:
        SourceUnreadable: it is missing, no folder, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise SourceUnreadable(
            f"{quote_name(str(path))} cannot be read: {describe_cause(error)}",
            hint="expected a folder with an adapter",
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_regular(path: Path | str, *, folder: int | None = None, follows_links: bool = False) -> BinaryIO:
    """A regular file opened for reading; a pipe or a device, which might block for ever, is not.

    Args:
        path: where it lies; a name in ``folder`` if that is given.
        folder: the descriptor of an open folder.
        follows_links: whether ``path`` may be a symbolic link.

    Raises:
        SourceUnreadable: it is missing, something else than a file, or cannot be read.
    """
    # A pipe without a writer would block here but for O_NONBLOCK.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follows_links else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags, dir_fd=folder)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == ELOOP and not follows_links:
            raise SourceUnreadable(
                f"{quote_name(str(path))} is a symbolic link, which is never followed"
            ) from error
        raise SourceUnreadable(f"{quote_name(str(path))} cannot be read: {describe_cause(error)}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceUnreadable(f"{quote_name(str(path))} is no regular file")
    return os.fdopen(descriptor, "rb")


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Return the bytes of a file of at most ``max_bytes``.

    Raises:
        SourceUnreadable: it is missing, too large, or cannot be read.
    """
    try:
        # In a Hub cache every file is a link; the bytes are judged by their digests.
        with open_regular(path, follows_links=True) as file:
            data = file.read(max_bytes + 1)
    except SourceUnreadable:
        raise
    except OSError as error:
        raise SourceUnreadable(f"cannot read `{path}`: {error.strerror or error}") from error
    if len(data) > max_bytes:
        raise SourceUnreadable(f"`{path}` has more than {max_bytes} bytes")
    return data


def read_start(name: str, max_bytes: int, *, folder: int) -> bytes:
    """The first ``max_bytes + 1`` bytes of a regular file in an open folder; a link is not followed.

    Raises:
        SourceUnreadable: it is missing, a link, no regular file, or cannot be read.
    """
    try:
        with open_regular(name, folder=folder) as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        if isinstance(error, SourceUnreadable):
            raise
        raise SourceUnreadable(f"{quote_name(name)} cannot be read: {describe_cause(error)}") from error


def describe_cause(error: OSError | ValueError) -> str:
    """Why a file cannot be opened, without its name; a name with a zero byte is a ValueError."""
    return getattr(error, "strerror", None) or str(error)
