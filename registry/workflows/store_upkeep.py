"""``store`` and ``remove``: the store's size, whether it is whole, whose it is, and what nothing refers to.

Everything is read a page of the catalog and a shard of the store at a time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import partial
from heapq import merge
from itertools import groupby, islice

from ...files.progress import Bytes, Progress, Step, silent
from ...schemas.digest import Digest
from ...schemas.errors import StillInUse, StoreUnavailable
from ...schemas.manifest import Origin
from ...schemas.names import CatalogSource
from ..catalog.catalog import Catalog
from ..catalog.records import TRASH_DAYS, Removal
from ..catalog.references import Reference
from ..store import Blob, RemoteStore, Store
from ..store.marks import unreferenced
from ..workspace import Workspace

_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Garbage:
    """Blobs and folders that nothing needs, deleted unless this was a dry run.

    ``young`` counts unreferenced blobs that were spared because they came too recently; ``copies`` are
    blobs in the cache of a store elsewhere that the catalog does not refer to; ``expired`` the versions that
    have been in the trash for their time.
    """

    blobs: int
    blob_bytes: int
    leftovers: int
    leftover_bytes: int
    copies: int
    copy_bytes: int
    young: int
    expired: tuple[CatalogSource, ...]

    @property
    def size_bytes(self) -> int:
        """All that is, or was, set free."""
        return self.blob_bytes + self.leftover_bytes + self.copy_bytes


class Condition(StrEnum):
    """The state of a blob."""

    WHOLE = "whole"
    MISSING = "missing"
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class BlobState:
    """One blob that the catalog refers to.

    ``found`` is the digest of its bytes where it is damaged, ``origin`` where the first of the versions
    that use it came from; ``in_trash`` is whether all of them were removed.
    """

    sha256: Digest
    size_bytes: int
    condition: Condition
    found: Digest | None
    used_by: tuple[CatalogSource, ...]
    file_names: tuple[str, ...]
    origin: Origin
    in_trash: bool


@dataclass(frozen=True, slots=True)
class AdapterShare:
    """The size of an adapter's versions: each blob counted once.

    ``own_bytes`` belong to blobs that no other adapter refers to, which removing it would set free.
    """

    name: str
    versions: int
    size_bytes: int
    own_bytes: int


@dataclass(frozen=True, slots=True)
class BundleShare:
    """The size of a bundle's versions: their folders, and in the store the blobs of their members."""

    name: str
    versions: int
    folder_bytes: int
    member_bytes: int


@dataclass(frozen=True, slots=True)
class Usage:
    """The contents of the store.

    ``shared_bytes`` belong to blobs that several adapters refer to; ``saved_bytes`` is what the files of
    all versions would take beyond that if each had its own copy; ``trash_bytes`` belong to blobs that only
    the trash refers to; ``reclaimable_bytes`` is what a collection would set free once nothing is too young.
    """

    store: str
    blobs: int
    size_bytes: int
    referenced_bytes: int
    shared_bytes: int
    saved_bytes: int
    trash_bytes: int
    reclaimable_bytes: int
    missing: int
    adapters: tuple[AdapterShare, ...]
    bundles: tuple[BundleShare, ...]


def collect_garbage(
    workspace: Workspace, *, grace_seconds: float | None = None, dry_run: bool = False
) -> Garbage:
    """Delete what has expired in the trash, what no version refers to, and what dead processes left.

    Args:
        workspace: whose store is swept of what its catalog does not refer to.
        grace_seconds: what is younger is spared; by default nothing in a store of this machine, where
            locks show what is in use, and a day in one elsewhere.
        dry_run: delete nothing.

    Raises:
        StillInUse: other catalogs use the store too, or may; nothing was deleted.
    """
    catalog, store = workspace.catalog, workspace.store
    grace = store.grace_seconds if grace_seconds is None else grace_seconds
    store.settle(catalog, dry_run=dry_run)
    # First, in a transaction of its own: from then on nothing can be restored whose bytes are deleted.
    expired = catalog.find_expired() if dry_run else catalog.purge()
    leftovers = store.list_leftovers()
    if not dry_run:
        store.clear_leftovers()
    old, young = [], 0
    freed = expired.digests if expired is not None and dry_run else frozenset[Digest]()
    for blob in unreferenced(store.list_blobs(), lambda digests: catalog.referenced(digests) - freed):
        if grace == 0 or store.age_seconds(blob.sha256) >= grace:
            old.append(blob)
        else:
            young += 1
    if not dry_run:
        store.drop((blob.sha256 for blob in old), references=partial(catalog.hold_references, action="gc"))
    aside = _drop_aside(workspace, dry_run=dry_run)
    copies = _drop_copies(workspace, dry_run=dry_run)
    return Garbage(
        blobs=len(old) + len(aside),
        blob_bytes=_sum(old) + _sum(aside),
        leftovers=len(leftovers),
        leftover_bytes=sum(each.size_bytes for each in leftovers),
        copies=len(copies),
        copy_bytes=_sum(copies),
        young=young,
        expired=() if expired is None else expired.versions,
    )


@dataclass(frozen=True, slots=True)
class Adoption:
    """The changes of making a catalog its store's only one.

    ``marks`` are where other catalogs' marks are, and ``blobs`` what this catalog does not refer to, which
    the next collection deletes.
    """

    marks: tuple[str, ...]
    blobs: int
    size_bytes: int


def plan_adoption(workspace: Workspace) -> Adoption:
    """Return what ``adopt_store`` would change, and change nothing.

    Raises:
        StoreUnavailable: the store cannot be read.
    """
    catalog, store = workspace.catalog, workspace.store
    others = sorted(store.list_marks() - {catalog.identify() or ""})
    blobs = list(unreferenced(store.list_blobs(), catalog.referenced))
    return Adoption(tuple(map(store.place_of_mark, others)), len(blobs), _sum(blobs))


def adopt_store(workspace: Workspace) -> None:
    """Make a catalog the only one that uses its store, for a person who knows that no other does.

    The catalog records it first: a death in between leaves the store as it was.

    Raises:
        StoreUnavailable: the store cannot be read or written.
    """
    catalog, store = workspace.catalog, workspace.store
    known = catalog.identify()
    catalog_digest = catalog.record_adoption(sorted(store.list_marks() - {known or ""}))
    store.adopt(catalog_digest)


def verify_store(workspace: Workspace, *, jobs: int = 1, progress: Progress = silent) -> Iterator[BlobState]:
    """Read every blob that the catalog refers to, and yield the state of each.

    Of a store elsewhere the bytes there are read, and not the copies in the cache.

    Args:
        workspace: its store is read; its catalog knows what is referred to, and how large it was.
        jobs: how many blobs are read at once.
        progress: called with a step's name, how much of it is done, and how much there is.
    """
    step = Step("reading", Bytes(referenced_bytes(workspace.catalog)), progress)
    grouped = _by_blob(workspace.catalog)
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        while some := list(islice(grouped, _AT_ONCE)):
            yield from pool.map(lambda group: _look_at(workspace.store, group, step), some)


def _by_blob(catalog: Catalog) -> Iterator[tuple[Reference, ...]]:
    """Yield the references to each blob in turn, those of the trash last; both lists are in that order."""
    every = merge(catalog.list_references(), catalog.list_trash_references(), key=lambda each: each.sha256)
    groups = groupby(every, key=lambda each: each.sha256)
    return (tuple(group) for _, group in groups)


def referenced_bytes(catalog: Catalog) -> int:
    """Return the size of all blobs that the catalog refers to, as recorded there."""
    return sum(references[0].size_bytes for references in _by_blob(catalog))


def measure_store(workspace: Workspace) -> Usage:
    """Measure what the store has for each adapter and bundle, and what nothing refers to."""
    catalog, store = workspace.catalog, workspace.store
    sizes = {blob.sha256: blob.size_bytes for blob in store.list_blobs()}
    count = _Count(sizes)
    for references in _by_blob(catalog):
        count.add(references)
    aside = sum(blob.size_bytes for blob in store.list_set_aside())
    leftovers = sum(each.size_bytes for each in store.list_leftovers())
    total = sum(sizes.values())
    return Usage(
        store=str(store),
        blobs=len(sizes),
        size_bytes=total,
        referenced_bytes=count.referenced_bytes,
        shared_bytes=count.shared_bytes,
        saved_bytes=count.saved_bytes,
        trash_bytes=count.trash_bytes,
        reclaimable_bytes=total - count.referenced_bytes + aside + leftovers,
        missing=count.missing,
        adapters=count.adapters(),
        bundles=_measure_bundles(catalog, sizes),
    )


class _Count:
    """Blobs counted for the adapters that refer to them."""

    def __init__(self, sizes: Mapping[Digest, int]) -> None:
        self._sizes = sizes
        self._versions: defaultdict[str, set[CatalogSource]] = defaultdict(set)
        self._bytes: Counter[str] = Counter()
        self._own_bytes: Counter[str] = Counter()
        self.referenced_bytes = self.shared_bytes = self.saved_bytes = self.missing = self.trash_bytes = 0

    def add(self, references: Sequence[Reference]) -> None:
        """Count one blob with all that refers to it."""
        digest = references[0].sha256
        size_bytes = self._sizes.get(digest, 0)
        self.referenced_bytes += size_bytes
        self.missing += digest not in self._sizes
        references = [each for each in references if not each.in_trash]
        if not references:
            self.trash_bytes += size_bytes
            return
        names = {each.version.name for each in references}
        for each in references:
            self._versions[each.version.name].add(each.version)
        for name in names:
            self._bytes[name] += size_bytes
        if len(names) == 1:
            self._own_bytes[references[0].version.name] += size_bytes
        else:
            self.shared_bytes += size_bytes
        self.saved_bytes += size_bytes * (len(references) - 1)

    def adapters(self) -> tuple[AdapterShare, ...]:
        """Return the share of each adapter, the largest first."""
        shares = (
            AdapterShare(name, len(versions), self._bytes[name], self._own_bytes[name])
            for name, versions in self._versions.items()
        )
        return tuple(sorted(shares, key=lambda share: (-share.size_bytes, share.name)))


def _measure_bundles(catalog: Catalog, sizes: Mapping[Digest, int]) -> tuple[BundleShare, ...]:
    places = sorted(catalog.list_bundle_places(), key=lambda place: place.version.name)
    shares = []
    for name, group in groupby(places, key=lambda place: place.version.name):
        versions = tuple(group)
        files = (digests for place in versions for digests in place.members.values())
        digests = frozenset[Digest]().union(*files)
        folders = sum(place.size_bytes for place in versions)
        members = sum(sizes.get(digest, 0) for digest in digests)
        shares.append(BundleShare(name, len(versions), folders, members))
    return tuple(sorted(shares, key=lambda share: (-share.folder_bytes, share.name)))


def _drop_aside(workspace: Workspace, *, dry_run: bool) -> list[Blob]:
    """Drop what was put aside and is whole again in its place, or needed by nothing; return it."""
    catalog, store = workspace.catalog, workspace.store
    aside = list(store.list_set_aside())
    needed = catalog.referenced([blob.sha256 for blob in aside]) if aside else set()
    done = [b for b in aside if b.sha256 not in needed or store.size_of(b.sha256) is not None]
    if done and not dry_run:
        store.require_sole(catalog.identify())
        for blob in done:
            store.drop_aside(blob.sha256)
    return done


def _drop_copies(workspace: Workspace, *, dry_run: bool) -> list[Blob]:
    store = workspace.store
    if not isinstance(store, RemoteStore):
        return []
    copies = list(unreferenced(store.list_cached(), workspace.catalog.referenced))
    if not dry_run:
        store.drop_cached(copy.sha256 for copy in copies)
    return copies


def _look_at(store: Store, references: Sequence[Reference], step: Step) -> BlobState:
    digest = references[0].sha256
    try:
        found = store.rehash(digest, step=step)
        condition = Condition.MISSING if found is None else Condition.WHOLE
        condition = condition if found in (None, digest) else Condition.DAMAGED
    except PermissionError:
        found, condition = None, Condition.UNREADABLE
    return BlobState(
        sha256=digest,
        size_bytes=references[0].size_bytes,
        condition=condition,
        found=found if condition is Condition.DAMAGED else None,
        used_by=tuple(dict.fromkeys(each.version for each in references)),
        file_names=tuple(dict.fromkeys(each.file_name for each in references)),
        origin=references[0].origin,
        in_trash=all(each.in_trash for each in references),
    )


def _sum(blobs: Iterable[Blob]) -> int:
    return sum(blob.size_bytes for blob in blobs)


@dataclass(frozen=True, slots=True)
class Removed:
    """The versions removed, and the bytes that this set free; ``kept`` is the reason if they had to stay.

    What is in the trash sets nothing free, and is restored with ``Registry.restore``.
    """

    removal: Removal
    freed_bytes: int
    kept: StillInUse | StoreUnavailable | None = None


def remove_versions(
    workspace: Workspace, source: CatalogSource, *, keep_days: int | None = TRASH_DAYS
) -> Removed:
    """Remove one version, or every version when ``source`` names none.

    Of a bundle only the record goes; its folder stays. Without ``keep_days`` it is deleted at once, with its
    bytes, and what the trash has of it, too. Killed in between, that leaves bytes that nothing refers to, and
    never a record without its bytes; so does a store that cannot be reached, or that other catalogs use too.

    Args:
        workspace: with the catalog, and the store whose bytes are deleted.
        source: what is removed.
        keep_days: how long it stays in the trash; None deletes it at once.

    Raises:
        NotInCatalog: there is nothing of that name.
        StillInUse: a bundle has one of them as a member.
    """
    if keep_days is not None:
        return Removed(workspace.catalog.remove(source, keep=timedelta(days=keep_days)), 0)
    catalog, store = workspace.catalog, workspace.store
    kept: StillInUse | StoreUnavailable | None = None
    try:
        # Before the record is gone: a store without marks is taken over by what refers to all of it.
        store.settle(catalog)
    except (StillInUse, StoreUnavailable) as error:
        kept = error
    removal = catalog.remove(source, keep=None)
    if not removal.digests or kept is not None:
        return Removed(removal, 0, kept=kept if removal.digests else None)
    try:
        return Removed(removal, store.drop(removal.digests, references=catalog.hold_references))
    except (StillInUse, StoreUnavailable) as error:
        return Removed(removal, 0, kept=error)
