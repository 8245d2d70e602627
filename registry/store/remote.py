"""A content store at a URL, with a folder of this machine in front that holds what was read or put.

No lock reaches every machine that uses it. The catalog, whose writers take turns, keeps a blob that is
being added from being deleted: a blob is deleted inside a writing transaction that finds no
reference to it, and recorded inside one that finds the blob still there, or puts it again. Whichever of
the two comes first, no record is left without its bytes.

So a store must know its catalog, by the marks that ``marks`` describes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ...files.digests import hash_chunks
from ...files.locks import hold_lock
from ...files.progress import UNCOUNTED, Step
from ...schemas.digest import Digest
from ...schemas.errors import StoreDamaged
from .blob import BLOB_NAME, SHARD_NAME, Blob, hash_blob, move_into_place, write_chunks
from .bucket import INCOMING, Remote
from .intake import claimed_folder
from .local import READD_HINT, HeldReferences, Leftover, Store
from .marks import MARKS, batches

_QUARANTINE = "quarantine"
# Each takes a request or two, and the catalog's other writers wait meanwhile.
_REMOTE_BATCH = 50
# A running upload does not pause for so long.
_IDLE_SECONDS = 3600.0


class RemoteStore(Store):
    """The blobs at a URL; what it shares with ``Store`` is done to the copies in the cache.

    Bytes are checked when they enter the cache. Its methods may be called by several threads,
    processes and machines at once. Each may raise ``StoreUnavailable``.
    """

    # An upload whose record is not made yet is younger than this.
    grace_seconds = 24 * 3600.0

    def __init__(self, url: str, caches: Path) -> None:
        self.remote = Remote(url)
        # A cache of its own, so that what one store lacks is never taken from another.
        super().__init__(caches / Digest.of_bytes(self.remote.url.encode()).short)

    def __str__(self) -> str:
        return str(self.remote)

    def require_there(self) -> None:
        """Pass if the store at the URL can be listed, however little is in it.

        Raises:
            StoreUnavailable: it does not exist, cannot be reached, or may not be listed.
            UsageError, MissingDependency: nothing here can open such a URL.
        """
        self.remote.require_there()

    def find(self, digest: Digest) -> Path | None:
        """Return the file of a copy, fetched and checked if there is none yet; None if the store has no blob.

        Raises:
            StoreDamaged: its bytes have another digest; nothing was kept.
            StoreUnavailable: the cache cannot be written.
        """
        return self.find_cached(digest) or self._fetch(digest)

    def find_cached(self, digest: Digest) -> Path | None:
        """Return the file of a copy that is here already."""
        return super().find(digest)

    def check(self, digest: Digest, *, step: Step = UNCOUNTED) -> Path:
        """Return the file of a copy with this digest, of a blob that is there and has the copy's size.

        A changed copy is fetched again.

        Raises:
            StoreDamaged: the blob is missing or changed.
        """
        size_bytes = self.size_of(digest)
        if size_bytes is None:
            raise self._missing(digest)
        copy = self.find_cached(digest)
        if copy is not None and hash_blob(copy, step) != digest:
            copy.unlink(missing_ok=True)
            copy = None
        if copy is not None and copy.stat().st_size != size_bytes:
            raise StoreDamaged(
                f"the blob `{self._url_of(digest)}` has {size_bytes} bytes, expected {copy.stat().st_size}",
                hint=READD_HINT,
            )
        path = copy or self._fetch(digest, step)
        if path is None:
            raise self._missing(digest)
        return path

    def rehash(self, digest: Digest, *, step: Step = UNCOUNTED) -> Digest | None:
        """Return the digest of the bytes in the store itself, all of which are transferred; None if none."""
        if self.size_of(digest) is None:
            return None
        return hash_chunks(self._read(digest, step))

    def size_of(self, digest: Digest) -> int | None:
        """Return the number of bytes stored under a digest; None if there is nothing."""
        return self.remote.size_of(_name_of(digest))

    def age_seconds(self, digest: Digest) -> float:
        """Return how long ago the blob was put there last; 0 if it is not there."""
        return self.remote.age_seconds(_name_of(digest))

    def send(self, digest: Digest, path: Path) -> None:
        """Put a copied file in its place there.

        It is put even if it is there already: that mends a damaged blob, and renews the age of an old one.
        """
        self.remote.put(path, _name_of(digest))

    def confirm(self, digests: Iterable[Digest], catalog: Digest) -> None:
        """Leave the catalog's mark, and put again what was deleted since it was published."""
        self.put_mark(catalog)
        for digest in digests:
            copy = self.place_of(digest)
            if self.size_of(digest) != copy.stat().st_size:
                self.remote.put(copy, _name_of(digest))

    def list_blobs(self) -> Iterator[Blob]:
        """Yield every blob in the store, ordered by digest, a shard at a time."""
        for shard, _ in self.remote.list_names("sha256"):
            if SHARD_NAME.fullmatch(shard):
                for rest, size_bytes in self.remote.list_names(f"sha256/{shard}"):
                    if BLOB_NAME.fullmatch(shard + rest):
                        yield Blob(Digest(shard + rest), size_bytes)

    def list_marks(self) -> set[str]:
        """Return the name of every mark in the store."""
        return {name for name, _ in self.remote.list_names(MARKS)}

    def place_of_mark(self, name: str) -> str:
        """Return the URL of a mark."""
        return self.remote.url_of(f"{MARKS}/{name}")

    def put_mark(self, name: str) -> None:
        """Write a mark, if it is not there."""
        if self.remote.size_of(f"{MARKS}/{name}") is None:
            with claimed_folder(self.incoming, self.lock_path) as folder:
                (folder / "mark").write_bytes(b"")
                self.remote.put(folder / "mark", f"{MARKS}/{name}")

    def drop_mark(self, name: str) -> None:
        """Delete a mark, if it is there."""
        self.remote.delete(f"{MARKS}/{name}")

    def list_cached(self) -> Iterator[Blob]:
        """Return every copy in the cache."""
        return super().list_blobs()

    def rehash_cached(self, digest: Digest) -> Digest | None:
        """Return the digest that a copy in the cache has now; None if there is none."""
        return super().rehash(digest)

    def drop_cached(self, digests: Iterable[Digest]) -> None:
        """Delete copies from the cache; the blobs stay where they are."""
        with hold_lock(self.lock_path):
            for digest in digests:
                self.place_of(digest).unlink(missing_ok=True)

    def list_leftovers(self) -> list[Leftover]:
        """Return the leftovers on the way into the cache, and those of an hour on the way into the store."""
        remote = [Leftover(self.remote.url_of(name), size) for name, size in self._abandoned_there()]
        return super().list_leftovers() + remote

    def clear_leftovers(self) -> None:
        """Delete the leftovers."""
        super().clear_leftovers()
        for name, _ in self._abandoned_there():
            self.remote.delete(name)

    def drop(self, digests: Iterable[Digest], *, references: HeldReferences) -> int:
        """Delete those blobs that nothing refers to; return the number of bytes set free.

        Raises:
            StillInUse: other catalogs use the store too, or may.
        """
        freed_bytes = 0
        for batch in batches(sorted(set(digests)), _REMOTE_BATCH):
            # The cache's lock too: an `add` on this machine may have to put its copy again.
            with hold_lock(self.lock_path), references() as held:
                self.require_sole(held.catalog)
                dropped = []
                for digest in batch:
                    size_bytes = self.size_of(digest)
                    # Asked just before each deletion: a lost connection no longer holds back other writers.
                    if size_bytes is not None and not held.among([digest]):
                        self.remote.delete(_name_of(digest))
                        self.place_of(digest).unlink(missing_ok=True)
                        dropped.append(Blob(digest, size_bytes))
                held.note(dropped)
                freed_bytes += sum(blob.size_bytes for blob in dropped)
        return freed_bytes

    def set_aside(self, digest: Digest) -> str:
        """Move a damaged blob aside, out of the way of the right bytes, and return its new URL."""
        name = f"{_QUARANTINE}/{digest}"
        self.remote.move(_name_of(digest), name)
        return self.remote.url_of(name)

    def list_set_aside(self) -> Iterator[Blob]:
        """Yield what was put aside, under the digests that it should have had."""
        for name, size_bytes in self.remote.list_names(_QUARANTINE):
            if BLOB_NAME.fullmatch(name):
                yield Blob(Digest(name), size_bytes)

    def drop_aside(self, digest: Digest) -> None:
        """Delete what was put aside."""
        self.remote.delete(f"{_QUARANTINE}/{digest}")

    def _fetch(self, digest: Digest, step: Step = UNCOUNTED) -> Path | None:
        if self.size_of(digest) is None:
            return None
        with claimed_folder(self.incoming, self.lock_path) as folder:
            path = folder / "copy"
            with path.open("xb") as target:
                blob = write_chunks(self._read(digest, step), target)
            if blob.sha256 != digest:
                raise StoreDamaged(
                    f"the blob `{self._url_of(digest)}` was changed: its bytes have the digest "
                    f"`{blob.sha256}`; nothing was kept",
                    hint=READD_HINT,
                )
            move_into_place(path, self.place_of(digest))
        return self.place_of(digest)

    def _read(self, digest: Digest, step: Step) -> Iterator[bytes]:
        for chunk in self.remote.read_chunks(_name_of(digest)):
            yield chunk
            step.advance(len(chunk))

    def _abandoned_there(self) -> list[tuple[str, int]]:
        # An object store does not show an unfinished upload; elsewhere the file grows as it arrives.
        entries = [(f"{INCOMING}/{name}", size) for name, size in self.remote.list_names(INCOMING)]
        return [entry for entry in entries if self.remote.age_seconds(entry[0]) >= _IDLE_SECONDS]

    def _url_of(self, digest: Digest) -> str:
        return self.remote.url_of(_name_of(digest))

    def _missing(self, digest: Digest) -> StoreDamaged:
        return StoreDamaged(
            f"the content store has no blob `{digest}`, expected `{self._url_of(digest)}`", hint=READD_HINT
        )


def _name_of(digest: Digest) -> str:
    return f"sha256/{digest[:2]}/{digest[2:]}"
