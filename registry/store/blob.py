"""Bytes and their digests: hashed while they are read, copied, or moved into place."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from ...schemas.digest import Digest
from ...schemas.errors import SourceUnreadable

CHUNK_BYTES = 1 << 20
READ_ONLY = 0o444

# Called with the number of bytes of each chunk that was read.
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Blob:
    """The digest and size of some bytes."""

    sha256: Digest
    size_bytes: int


@contextmanager
def open_regular_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, if it is a regular file and not a symbolic link.

    Raises:
        SourceUnreadable: it is anything else, or cannot be read.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if path.is_symlink():
            raise SourceUnreadable(f"`{path}` is a symbolic link, which is never followed") from error
        raise SourceUnreadable(f"`{path}` cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceUnreadable(f"`{path}` is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        yield file


def read_chunks(file: BinaryIO, advance: Advance | None = None) -> Iterator[bytes]:
    """Yield the rest of a file, 1 MiB at a time."""
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
        if advance is not None:
            advance(len(chunk))


def hash_file(path: Path, advance: Advance | None = None) -> Digest:
    """Return the digest of a file's bytes."""
    with path.open("rb") as file:
        return hash_chunks(read_chunks(file, advance))


def hash_chunks(chunks: Iterable[bytes]) -> Digest:
    """Return the digest of the chunks, one after another."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return Digest(digest.hexdigest())


def write_chunks(chunks: Iterable[bytes], target: IO[bytes]) -> Blob:
    """Write the chunks into a new file, hashing them, and have them on the disk before this returns."""
    digest = hashlib.sha256()
    size_bytes = 0
    for chunk in chunks:
        size_bytes += len(chunk)
        digest.update(chunk)
        target.write(chunk)
    os.fchmod(target.fileno(), READ_ONLY)
    target.flush()
    os.fsync(target.fileno())
    return Blob(Digest(digest.hexdigest()), size_bytes)


def move_into_place(path: Path, place: Path) -> None:
    """Rename a file that is on the disk, and have its new name on the disk before this returns."""
    # Over an equal blob this changes nothing; over a damaged one it puts the right bytes back.
    place.parent.mkdir(parents=True, exist_ok=True)
    path.replace(place)
    for folder in (place.parent, place.parent.parent):
        flush_folder(folder)


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
