"""SHA-256 digests of files and of bytes that come in pieces, with constant memory.

``Digest`` itself, and the digest of bytes that are in memory, are in ``schemas.digest``. A file may change
between two readings, so a digest is taken while the bytes are copied or judged wherever that is possible.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, BinaryIO

from ..schemas.digest import Digest
from .progress import UNCOUNTED, Step
from .reading import open_regular, read_errors

CHUNK_BYTES = 1 << 20


class Hasher:
    """The SHA-256 digest of bytes that come piece by piece, and how many came."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._hash.update(data)
        self.size_bytes += len(data)

    @property
    def digest(self) -> Digest:
        """The digest of the bytes so far."""
        return Digest(self._hash.hexdigest())


def read_chunks(file: BinaryIO, step: Step = UNCOUNTED) -> Iterator[bytes]:
    """Yield the rest of a file, 1 MiB at a time; ``step`` counts the bytes."""
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
        step.advance(len(chunk))


def hash_chunks(chunks: Iterable[bytes | memoryview]) -> Digest:
    """Return the digest of the chunks, one after another."""
    hasher = Hasher()
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.digest


def hash_file(path: Path, step: Step = UNCOUNTED) -> Digest:
    """Return the digest of a regular file's bytes; ``step`` counts them. It may be a link.

    Raises:
        SourceUnreadable: it is missing, is not a regular file, or cannot be read.
    """
    with read_errors(path), open_regular(path, follows_links=True) as file:
        return hash_chunks(read_chunks(file, step))


def copy_chunks(chunks: Iterable[bytes], target: IO[bytes]) -> Hasher:
    """Write the chunks into an open file, and return the hasher that read them on the way."""
    hasher = Hasher()
    for chunk in chunks:
        hasher.update(chunk)
        target.write(chunk)
    return hasher
