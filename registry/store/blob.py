"""The bytes of a blob on this machine: hashed while they are copied, read-only, flushed before they count."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ...files import writing
from ...files.digests import copy_chunks, hash_chunks, read_chunks
from ...files.progress import UNCOUNTED, Step
from ...schemas.digest import Digest

READ_ONLY = 0o444
# A blob's name is its digest, whose first two digits are the folder of its shard.
SHARD_NAME = re.compile(r"[0-9a-f]{2}")
BLOB_NAME = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Blob:
    """The digest and size of some bytes."""

    sha256: Digest
    size_bytes: int


def hash_blob(path: Path, step: Step = UNCOUNTED) -> Digest:
    """Return the digest of a stored file's bytes.

    Raises:
        OSError: as the system raises it, so that a missing blob differs from one that may not be read.
    """
    with path.open("rb") as file:
        return hash_chunks(read_chunks(file, step))


def write_chunks(chunks: Iterable[bytes], target: IO[bytes]) -> Blob:
    """Write the chunks into a new file, hashing them, and have them on the disk before this returns."""
    hasher = copy_chunks(chunks, target)
    os.fchmod(target.fileno(), READ_ONLY)
    target.flush()
    writing.flush_open(target.fileno())
    return Blob(hasher.digest, hasher.size_bytes)


def move_into_place(path: Path, place: Path) -> None:
    """Rename a file that is on the disk, and have its new name on the disk before this returns."""
    # Over an equal blob this changes nothing; over a damaged one it puts the right bytes back.
    place.parent.mkdir(parents=True, exist_ok=True)
    writing.move_into_place(path, place)
    # Even if another process made the shard's folder, its name may not be on the disk yet.
    writing.flush_folder(place.parent.parent)
