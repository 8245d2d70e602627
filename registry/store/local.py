"""A content store in a folder of this machine.

A blob is hashed while it is copied, written beside its place, flushed to the disk and moved there in
one step, so a name in the store always has all of its bytes. Publishing shares a lock until the record is
committed, and deleting takes it exclusively, so nothing is deleted while it is being added. Nothing is
deleted at all unless the marks show that one catalog alone uses the store.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ...files.locks import hold_lock, is_abandoned
from ...files.progress import UNCOUNTED, Step
from ...files.writing import flush_folder
from ...schemas.digest import Digest
from ...schemas.errors import StoreDamaged, StoreUnavailable
from .blob import BLOB_NAME, READ_ONLY, SHARD_NAME, Blob, hash_blob, move_into_place
from .intake import Intake, claimed_folder, written
from .marks import MARKS, MarkedStore, batches

READD_HINT = "add the adapter again from its source"
_REST = re.compile(r"[0-9a-f]{62}")
_ANY = re.compile(r".+", re.DOTALL)


@dataclass(frozen=True, slots=True)
class References:
    """The references of a catalog, valid while the catalog cannot change.

    ``catalog`` identifies the catalog, None if nothing was ever recorded in it; ``among`` gives those
    of some digests that a version refers to; ``note`` records what was deleted, if that is to be kept.
    """

    catalog: Digest | None
    among: Callable[[Collection[Digest]], Collection[Digest]]
    note: Callable[[Sequence[Blob]], None] = lambda _: None


# Opens the references: no other is committed until the block ends.
HeldReferences = Callable[[], AbstractContextManager[References]]


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that a process left in ``incoming`` when it died."""

    place: str
    size_bytes: int


class Store(MarkedStore):
    """The blobs below one folder.

    Its methods may be called by several threads and processes at once.
    """

    # A lock shows what is in use, so unused blobs may be deleted at once.
    grace_seconds = 0.0

    def __init__(self, folder: Path) -> None:
        self._blobs = folder / "blobs"

    def __str__(self) -> str:
        return str(self._blobs)

    @property
    def _marks(self) -> Path:
        return self._blobs / MARKS

    @property
    def incoming(self) -> Path:
        """Where copies lie until they are published; the same file system as their places."""
        return self._blobs / "incoming"

    @property
    def lock_path(self) -> Path:
        """Shared while blobs are published and recorded, held alone while blobs are dropped."""
        return self._blobs / "lock"

    def require_there(self) -> None:
        """Pass if blobs can be read here, or none was ever put here.

        Raises:
            StoreUnavailable: the store's folder is not a folder, or may not be read.
        """
        _children(self._blobs)
        _children(self._blobs / "sha256")
        if self._blobs.is_symlink() and not self._blobs.exists():
            raise StoreUnavailable(
                f"the content store `{self}` is a link to a folder that is not there",
                hint="mount or make that folder, or remove the link",
            )

    def place_of(self, digest: Digest) -> Path:
        """Return the path of the blob, whether or not it exists."""
        return self._blobs / "sha256" / digest[:2] / digest[2:]

    def place_aside(self, digest: Digest) -> Path:
        """Return the path of a blob that was put aside on this machine, whether or not there is one."""
        return self._blobs / "quarantine" / digest

    def find(self, digest: Digest) -> Path | None:
        """Return the blob's file, to be read only; None if there is none."""
        place = self.place_of(digest)
        return place if place.is_file() else None

    def path_of(self, digest: Digest) -> Path:
        """Return the blob's file, to be read only.

        Raises:
            StoreDamaged: there is none.
        """
        path = self.find(digest)
        if path is None:
            raise self._missing(digest)
        return path

    def check(self, digest: Digest, *, step: Step = UNCOUNTED) -> Path:
        """Return the blob's file, after its bytes were read and found to have this digest.

        Raises:
            StoreDamaged: missing, or changed since it was stored.
        """
        path = self.path_of(digest)
        found = hash_blob(path, step)
        if found != digest:
            raise _changed(path, found)
        return path

    def read(self, digest: Digest) -> bytes:
        """Return the bytes of a small blob, such as a config, checked against the digest.

        Raises:
            StoreDamaged: missing, or changed since it was stored.
        """
        path = self.path_of(digest)
        data = path.read_bytes()
        if Digest.of_bytes(data) != digest:
            raise _changed(path, Digest.of_bytes(data))
        return data

    def rehash(self, digest: Digest, *, step: Step = UNCOUNTED) -> Digest | None:
        """Return the digest that the stored bytes have now; None if there are none."""
        try:
            return hash_blob(self.place_of(digest), step)
        except FileNotFoundError:
            return None

    def size_of(self, digest: Digest) -> int | None:
        """Return the number of bytes stored under a digest; None if there is nothing."""
        try:
            return self.place_of(digest).stat().st_size
        except FileNotFoundError:
            return None

    def age_seconds(self, digest: Digest) -> float:
        """Return how long ago the blob was put there; 0 if it is not there."""
        try:
            return time.time() - self.place_of(digest).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    @contextmanager
    def intake(self) -> Iterator[Intake]:
        """Take files in; whatever was not published when the block ends is deleted.

        Raises:
            StoreUnavailable: the store cannot be written.
        """
        with claimed_folder(self.incoming, self.lock_path) as folder:
            yield Intake(self, folder)

    def send(self, digest: Digest, path: Path) -> None:
        """Put a copied file where other machines see it; called before any lock is held.

        Here there is no such place.
        """

    def publish(self, digest: Digest, path: Path) -> None:
        """Put a copied file in its place, over any that is there; called by ``Intake.published``."""
        move_into_place(path, self.place_of(digest))

    def confirm(self, digests: Iterable[Digest], catalog: Digest) -> None:
        """Make sure that these are still there; called by ``Intake.confirm``.

        Here the lock that ``Intake.published`` holds has already made sure; what may be gone is the
        catalog's mark, if another one adopted the store meanwhile.
        """
        self.put_mark(catalog)

    def list_blobs(self) -> Iterator[Blob]:
        """Yield every blob, ordered by digest, a shard at a time."""
        for shard in filter(Path.is_dir, _children(self._blobs / "sha256", SHARD_NAME)):
            for path in _children(shard, _REST):
                with suppress(FileNotFoundError):
                    yield Blob(Digest(shard.name + path.name), path.stat().st_size)

    def list_marks(self) -> set[str]:
        """Return the name of every mark."""
        return {path.name for path in _children(self._marks)}

    def place_of_mark(self, name: str) -> str:
        """Return the file of a mark."""
        return str(self._marks / name)

    def put_mark(self, name: str) -> None:
        """Write a mark, if it is not there; it is on the disk before this returns."""
        if name in self.list_marks():
            return
        with written(self.incoming):
            self._marks.mkdir(parents=True, exist_ok=True)
            # It has no bytes, so it is never half there.
            (self._marks / name).touch(READ_ONLY)
            for folder in (self._marks, self._blobs):
                flush_folder(folder)

    def drop_mark(self, name: str) -> None:
        """Delete a mark, if it is there."""
        with written(self.incoming):
            (self._marks / name).unlink(missing_ok=True)

    def adopt(self, catalog: Digest) -> None:
        """Make this catalog the only one that uses the store, while no other publishes or deletes."""
        with hold_lock(self.lock_path):
            super().adopt(catalog)

    def list_files(self) -> Iterator[Path]:
        """Return everything on this machine where only blobs belong."""
        return (
            path for path in (self._blobs / "sha256").rglob("*") if path.is_symlink() or not path.is_dir()
        )

    def list_folders(self) -> Iterator[Path]:
        """Yield every folder of the store on this machine."""
        if self._blobs.is_dir():
            yield self._blobs
            yield from (path for path in self._blobs.rglob("*") if path.is_dir() and not path.is_symlink())

    def digest_at(self, path: Path) -> Digest | None:
        """Return the digest whose place a path is; None if it is not the place of a blob."""
        name = path.parent.name + path.name
        return Digest(name) if BLOB_NAME.fullmatch(name) and self.place_of(Digest(name)) == path else None

    def list_leftovers(self) -> list[Leftover]:
        """Return the leftovers in ``incoming`` of processes that died."""
        sizes = [(path, _size_of(path)) for path in self._abandoned()]
        return [Leftover(str(path), size) for path, size in sizes if size is not None]

    def clear_leftovers(self) -> None:
        """Delete the leftovers."""
        if not self.incoming.is_dir():
            return
        with hold_lock(self.lock_path):
            for path in self._abandoned():
                # Its own process may be ending, and deletes it too.
                with suppress(FileNotFoundError):
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def drop(self, digests: Iterable[Digest], *, references: HeldReferences) -> int:
        """Delete those blobs that nothing refers to; return the number of bytes set free.

        The references are read while no blob can be published, so none is deleted while it is being added.

        Raises:
            StillInUse: other catalogs use the store too, or may.
        """
        freed_bytes = 0
        for batch in batches(sorted(set(digests))):
            with hold_lock(self.lock_path), references() as held:
                self.require_sole(held.catalog)
                unneeded = sorted(set(batch) - set(held.among(batch)))
                sizes = {digest: self.size_of(digest) for digest in unneeded}
                blobs = [Blob(digest, size) for digest, size in sizes.items() if size is not None]
                for blob in blobs:
                    self.place_of(blob.sha256).unlink(missing_ok=True)
                held.note(blobs)
                freed_bytes += sum(blob.size_bytes for blob in blobs)
        return freed_bytes

    def set_aside(self, digest: Digest) -> str:
        """Move a damaged blob aside, out of the way of the right bytes, and return its new path.

        Raises:
            StoreDamaged: there is none.
        """
        place = self.place_aside(digest)
        with hold_lock(self.lock_path):
            if not self.place_of(digest).is_file():
                raise self._missing(digest)
            move_into_place(self.place_of(digest), place)
        return str(place)

    def list_set_aside(self) -> Iterator[Blob]:
        """Yield what was put aside, under the digests that it should have had."""
        for path in _children(self._blobs / "quarantine", BLOB_NAME):
            with suppress(FileNotFoundError):
                yield Blob(Digest(path.name), path.stat().st_size)

    def drop_aside(self, digest: Digest) -> None:
        """Delete what was put aside."""
        self.place_aside(digest).unlink(missing_ok=True)

    def _abandoned(self) -> list[Path]:
        return [path for path in _children(self.incoming) if is_abandoned(path)]

    def _missing(self, digest: Digest) -> StoreDamaged:
        return StoreDamaged(
            f"the content store has no blob `{digest}`, expected the file `{self.place_of(digest)}`",
            hint=READD_HINT,
        )


def _changed(path: Path, found: Digest) -> StoreDamaged:
    return StoreDamaged(
        f"the blob `{path}` was changed: its bytes have the digest `{found}`", hint=READD_HINT
    )


def _children(folder: Path, names: re.Pattern[str] = _ANY) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if names.fullmatch(path.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreUnavailable(
            f"the folder `{folder}` of the content store cannot be read: {error.strerror or error}",
            hint="it has to be a folder that this user may read and enter",
        ) from error


def _size_of(path: Path) -> int | None:
    """Return the bytes of a file or folder; None if it was deleted meanwhile."""
    try:
        if not path.is_dir():
            return path.lstat().st_size
        return sum(each.lstat().st_size for each in path.rglob("*") if each.is_file())
    except FileNotFoundError:
        return None
