"""``doctor`` for the content store: blobs that are missing or damaged, and files that nothing refers to."""

from __future__ import annotations

import shlex
import stat
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from ...files.digests import hash_file
from ...files.progress import Progress
from ...schemas.digest import Digest
from ...schemas.errors import SourceUnreadable, UsageError
from ...schemas.manifest import Origin
from ...schemas.names import parse_repository
from ..catalog.catalog import Catalog
from ..home import Home
from ..store import RemoteStore, Store
from ..store.blob import READ_ONLY
from ..workspace import Workspace
from .problem import Code, Mending, Problem, join_some
from .store_upkeep import BlobState, Condition, collect_garbage, verify_store

_CODES = {
    Condition.MISSING: Code.STORE_MISSING,
    Condition.DAMAGED: Code.STORE_DAMAGED,
    Condition.UNREADABLE: Code.STORE_UNREADABLE,
}
_ANY_WRITE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def examine_store(workspace: Workspace, *, jobs: int, progress: Progress) -> Iterator[Problem]:
    """Yield problems of the blobs that the catalog refers to, of local permissions, and stray files."""
    store = workspace.store
    yield from examine_permissions(workspace)
    for state in verify_store(workspace, jobs=jobs, progress=progress):
        if state.condition is not Condition.WHOLE:
            yield _judge(workspace, state)
    if isinstance(store, RemoteStore):
        yield from _examine_copies(store)


def examine_garbage(workspace: Workspace) -> Iterator[Problem]:
    """Yield leftovers, and blobs that nothing refers to.

    Raises:
        StillInUse: other catalogs use the store too, or may.
    """
    store = workspace.store
    left = store.list_leftovers()
    if left:
        yield Problem(
            Code.STORE_LEFTOVER,
            join_some([each.place for each in left]),
            f"left by a process that died, {sum(each.size_bytes for each in left)} bytes",
            "`meteora-registry store gc`",
            Mending("delete it", store.clear_leftovers),
        )
    garbage = collect_garbage(workspace, dry_run=True)
    if garbage.blobs or garbage.copies:
        yield Problem(
            Code.STORE_UNREFERENCED,
            f"`{store}`",
            f"{garbage.blobs} blobs and {garbage.copies} cached copies that nothing refers to, "
            f"{garbage.blob_bytes + garbage.copy_bytes} bytes",
            "`meteora-registry store gc`",
            Mending("delete what nothing refers to by then", partial(collect_garbage, workspace)),
        )


def _judge(workspace: Workspace, state: BlobState) -> Problem:
    used_by = ", ".join(map(str, state.used_by)) + (" in the trash" if state.in_trash else "")
    found = {
        Condition.MISSING: "the blob is missing",
        Condition.DAMAGED: f"its bytes have the digest `{state.found}`",
        Condition.UNREADABLE: "this user may not read it",
    }[state.condition]
    return Problem(
        _CODES[state.condition],
        f"blob `{state.sha256}` ({', '.join(state.file_names)} of {used_by})",
        found,
        _way_out(workspace.catalog, state),
        _mending(workspace, state),
    )


def _mending(workspace: Workspace, state: BlobState) -> Mending | None:
    if state.condition is Condition.UNREADABLE:
        return None
    source = next(
        (path for path in _other_copies(workspace.home, state.sha256) if _is_whole(path, state)), None
    )
    if source is not None:
        put_back = partial(_put_back, workspace, source, state.sha256)
        return Mending(f"put it back from `{source}`", put_back)
    if state.condition is Condition.MISSING:
        return None
    return Mending(
        "put the damaged bytes aside, so that they are not taken for it; it has to be added again",
        partial(_put_aside, workspace.store, state.sha256),
        heals=False,
    )


def _other_copies(home: Home, digest: Digest) -> Iterator[Path]:
    """Yield where this machine may have the same bytes: the caches, the local store, what was put aside."""
    stores = [Store(home.folder), *(Store(path) for path in sorted((home.folder / "cache").glob("*")))]
    for store in stores:
        yield store.place_of(digest)
        yield store.place_aside(digest)


def _is_whole(path: Path, state: BlobState) -> bool:
    try:
        return path.stat().st_size == state.size_bytes and hash_file(path) == state.sha256
    except OSError:
        return False


def _put_back(workspace: Workspace, source: Path, digest: Digest) -> None:
    catalog, store = workspace.catalog, workspace.store
    with store.intake() as intake:
        if intake.copy(source).sha256 != digest:
            raise SourceUnreadable(f"`{source}` changed since it was looked at", hint="run this again")
        # As an `add` does: what else may be in the store is not this catalog's.
        store.mark(catalog.ensure_identity(), catalog.referenced)
        with intake.published(), catalog.hold_references() as held:
            if held.catalog is not None:
                intake.confirm(held.catalog)


def _put_aside(store: Store, digest: Digest) -> None:
    if store.rehash(digest) not in (None, digest):
        store.set_aside(digest)


def _way_out(catalog: Catalog, state: BlobState) -> str:
    if state.condition is Condition.UNREADABLE:
        return "let this user read it"
    source = state.used_by[0]
    if state.in_trash:
        return f"`meteora-registry remove {source} --for-good`, since it cannot be restored as it was"
    again = _add_again(state.origin, source.name)
    for place in catalog.list_bundle_places():
        for member, digests in place.members.items():
            if state.sha256 in digests:
                extract = f"`meteora-registry extract {place.version} {member} --out FOLDER`"
                return f"{again}; {extract} gives the folder back"
    return again


def _add_again(origin: Origin, name: str) -> str:
    if origin.location.startswith("hf:"):
        # What others wrote is quoted, for a person may well paste it into a shell.
        with suppress(UsageError):
            hub = parse_repository(origin.location)
            revision = f"@{hub.revision}" if hub.revision else ""
            folder = f" --subfolder {shlex.quote(hub.subfolder)}" if hub.subfolder else ""
            where = shlex.quote(f"hf://{hub.repository}{revision}")
            return f"`meteora-registry add {where}{folder} --name {name}`"
    return f"`meteora-registry add FOLDER --name {name}` with the folder it came from"


def examine_permissions(workspace: Workspace) -> Iterator[Problem]:
    """Yield what on this machine has the wrong permissions, and files that are not blobs."""
    store = workspace.store
    wrong, strays = [], []
    for path in store.list_files():
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode) or store.digest_at(path) is None:
            strays.append(path)
        elif mode & _ANY_WRITE or not mode & stat.S_IRUSR:
            wrong.append(path)
    closed = [path for path in store.list_folders() if path.stat().st_mode & stat.S_IRWXU != stat.S_IRWXU]
    if wrong:
        yield Problem(
            Code.STORE_PERMISSIONS,
            join_some([str(path) for path in wrong]),
            "may be written or not be read, and a blob is read and never changes",
            "`chmod u+r,a-w` on it",
            Mending("make it readable and read-only", partial(_make_read_only, wrong)),
        )
    if closed:
        yield Problem(
            Code.STORE_PERMISSIONS,
            join_some([str(path) for path in closed]),
            "its owner may not read, write or enter it",
            "`chmod u+rwx` on it",
            Mending("open it to its owner", partial(_open_to_owner, closed)),
        )
    if strays:
        yield Problem(
            Code.STORE_STRAY,
            join_some([str(path) for path in strays]),
            "is not a blob of this store",
            "move it away; nothing reads it",
        )


def _make_read_only(blobs: list[Path]) -> None:
    for path in blobs:
        path.chmod(READ_ONLY)


def _open_to_owner(folders: list[Path]) -> None:
    for folder in folders:
        folder.chmod(stat.S_IMODE(folder.stat().st_mode) | stat.S_IRWXU)


def _examine_copies(store: RemoteStore) -> Iterator[Problem]:
    copies = [blob.sha256 for blob in store.list_cached()]
    damaged = [digest for digest in copies if store.rehash_cached(digest) not in (None, digest)]
    if damaged:
        yield Problem(
            Code.CACHE_DAMAGED,
            join_some(damaged),
            "the copy in the cache has other bytes",
            "delete it; it is fetched again when it is needed",
            Mending("delete it from the cache", partial(store.drop_cached, damaged)),
        )
