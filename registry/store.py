"""The content store: every file once, under the SHA-256 digest of its bytes, never changed.

A blob lies at ``blobs/sha256/ab/cdef...``. It is hashed while it is copied, written beside its place,
flushed to the disk and moved there in one step, so a name in the store always has all of its bytes.
A caller publishes blobs first and records them in the catalog second, inside ``Intake.published``;
a crash in between leaves a blob that nothing refers to, and never a record without its bytes.

Nothing here knows what the bytes mean. Copies that a crash left behind lie in ``blobs/incoming``.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, BinaryIO

from ..schemas.digest import Digest
from ..schemas.errors import SourceUnreadable, StoreDamaged
from .lock import hold_lock

_CHUNK_BYTES = 1 << 20
_READ_ONLY = 0o444

# Told the number of bytes of each chunk that was read.
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Blob:
    """The digest and size of some bytes."""

    sha256: Digest
    size_bytes: int


class Intake:
    """Files on their way into the store: copied and hashed, not yet under their digests."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._staged: dict[Digest, Path] = {}

    def copy(self, source: Path, *, max_bytes: int | None = None, advance: Advance | None = None) -> Blob:
        """Copy one file, hashing it on the way; memory: one chunk of 1 MiB.

        Raises:
            SourceUnreadable: missing, a symbolic link, no regular file, or larger than ``max_bytes``.
        """
        folder = self._store.incoming
        folder.mkdir(parents=True, exist_ok=True)
        with open_regular_file(source) as file, NamedTemporaryFile(dir=folder, delete=False) as target:
            path = Path(target.name)
            try:
                blob = _copy_hashed(file, target, source=source, max_bytes=max_bytes, advance=advance)
                os.fchmod(target.fileno(), _READ_ONLY)
                target.flush()
                os.fsync(target.fileno())
            except BaseException:
                path.unlink()
                raise
        if blob.sha256 in self._staged:
            path.unlink()
        else:
            self._staged[blob.sha256] = path
        return blob

    @contextmanager
    def published(self) -> Iterator[None]:
        """Everything copied is in its place, and no removal takes it away until the block ends."""
        with hold_lock(self._store.lock_path, shared=True):
            for digest, path in self._staged.items():
                _move_into_place(path, self._store.place_of(digest))
            self._staged.clear()
            yield

    def discard(self) -> None:
        """Delete what was copied and not published."""
        for path in self._staged.values():
            path.unlink(missing_ok=True)
        self._staged.clear()


class Store:
    """The blobs below one folder."""

    def __init__(self, folder: Path) -> None:
        self._blobs = folder / "blobs"

    @property
    def incoming(self) -> Path:
        """Where copies lie until they are published; the same file system as their places."""
        return self._blobs / "incoming"

    @property
    def lock_path(self) -> Path:
        """Shared while blobs are published and recorded, held alone while blobs are dropped."""
        return self._blobs / "lock"

    def place_of(self, digest: Digest) -> Path:
        """Where the blob lies, if it is there."""
        return self._blobs / "sha256" / digest[:2] / digest[2:]

    def path_of(self, digest: Digest) -> Path:
        """The blob's file, to be read only.

        Raises:
            StoreDamaged: there is none.
        """
        path = self.place_of(digest)
        if not path.is_file():
            raise StoreDamaged(
                f"the content store has no blob `{digest}`, expected the file `{path}`",
                hint="add the adapter again from its source",
            )
        return path

    def check(self, digest: Digest, *, advance: Advance | None = None) -> Path:
        """The blob's file, after its bytes were read and found to have this digest.

        Raises:
            StoreDamaged: missing, or changed since it was stored.
        """
        path = self.path_of(digest)
        found = hashlib.sha256()
        with path.open("rb") as file:
            for chunk in _chunks(file, advance):
                found.update(chunk)
        if found.hexdigest() != digest:
            raise StoreDamaged(
                f"the blob `{path}` was changed: its bytes have the digest `{found.hexdigest()}`",
                hint="add the adapter again from its source",
            )
        return path

    def read(self, digest: Digest) -> bytes:
        """The bytes of a small blob, such as a config, checked against the digest.

        Raises:
            StoreDamaged: missing, or changed since it was stored.
        """
        path = self.path_of(digest)
        data = path.read_bytes()
        if Digest.of_bytes(data) != digest:
            raise StoreDamaged(
                f"the blob `{path}` was changed: its bytes have the digest `{Digest.of_bytes(data)}`",
                hint="add the adapter again from its source",
            )
        return data

    @contextmanager
    def intake(self) -> Iterator[Intake]:
        """Take files in; whatever was not published when the block ends is deleted."""
        intake = Intake(self)
        try:
            yield intake
        finally:
            intake.discard()

    def drop(
        self, digests: Iterable[Digest], *, referenced: Callable[[Collection[Digest]], Collection[Digest]]
    ) -> int:
        """Delete those blobs that nothing refers to; the number of bytes set free.

        ``referenced`` is asked while no blob can be published, so none is deleted that is being added.
        """
        wanted = set(digests)
        freed_bytes = 0
        with hold_lock(self.lock_path):
            for digest in sorted(wanted - set(referenced(wanted))):
                path = self.place_of(digest)
                with suppress(FileNotFoundError):
                    size_bytes = path.stat().st_size
                    path.unlink()
                    freed_bytes += size_bytes
        return freed_bytes


@contextmanager
def open_regular_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, if it is a regular one and no symbolic link.

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
        raise SourceUnreadable(f"`{path}` is no regular file")
    with os.fdopen(descriptor, "rb") as file:
        yield file


def _copy_hashed(
    file: BinaryIO, target: IO[bytes], *, source: Path, max_bytes: int | None, advance: Advance | None
) -> Blob:
    digest = hashlib.sha256()
    size_bytes = 0
    for chunk in _chunks(file, advance):
        size_bytes += len(chunk)
        if max_bytes is not None and size_bytes > max_bytes:
            raise SourceUnreadable(f"`{source}` is larger than {max_bytes} bytes")
        digest.update(chunk)
        target.write(chunk)
    return Blob(Digest(digest.hexdigest()), size_bytes)


def _chunks(file: BinaryIO, advance: Advance | None) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk
        if advance is not None:
            advance(len(chunk))


def _move_into_place(path: Path, place: Path) -> None:
    # Over an equal blob this changes nothing; over a damaged one it puts the right bytes back.
    place.parent.mkdir(parents=True, exist_ok=True)
    path.replace(place)
    for folder in (place.parent, place.parent.parent):
        _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
