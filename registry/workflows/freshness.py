"""``refresh``: which catalogued adapters changed on the Hub, and how.

Nothing is downloaded but lists of files, and the config where that changed; nothing is recorded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from ...schemas.bundle import CONFIG_FILE
from ...schemas.document import MAX_CONFIG_BYTES, load_json
from ...schemas.errors import HubNotFound, HubRefused, InvalidDocument, UsageError
from ...schemas.names import CatalogSource, HubSource, parse_repository
from ..catalog.catalog import Catalog
from ..catalog.records import AdapterVersion
from ..hub.client import Hub
from ..hub.download import read_small_file
from ..hub.listing import Listing, RemoteFile, digest_file
from ..workspace import Workspace

_MAX_SHOWN = 80


class State(StrEnum):
    """The comparison of a catalogued adapter with its source on the Hub."""

    CURRENT = "current"
    # There is a newer commit, which left this adapter's files as they were.
    SAME_FILES = "same files"
    CHANGED = "changed"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Freshness:
    """One adapter: the commit catalogued, the one of the main branch now, and what changed between."""

    version: CatalogSource
    origin: HubSource
    commit: str
    state: State
    changes: tuple[str, ...]


def hub_versions(catalog: Catalog, names: Iterable[str]) -> tuple[AdapterVersion, ...]:
    """Return the latest versions of these adapters, or of all, that came from the Hub.

    A member of a pulled bundle, of which only the bundle claims where it is from, is not one of them.

    Raises:
        NotInCatalog: there is no adapter of one of these names.
    """
    wanted = tuple(names) or tuple(summary.name for summary in catalog.list_adapters())
    versions = (catalog.find(CatalogSource(name)) for name in wanted)
    return tuple(
        version for version in versions if version.origin.kind == "hub" and version.claimed_by is None
    )


def check_freshness(workspace: Workspace, version: AdapterVersion) -> Freshness:
    """Compare an adapter from the Hub with the main branch of its repository.

    Raises:
        HubUnavailable, HubRefused: the Hub did not answer, or does not show the repository any more.
    """
    hub, origin = workspace.hub, _read_origin(version)
    pinned = version.origin.commit or ""
    try:
        repository, commit = hub.locate(origin.repository)
    except HubNotFound as error:
        return Freshness(version.source, origin, pinned, State.GONE, (error.message,))
    if commit == pinned:
        return Freshness(version.source, origin, commit, State.CURRENT, ())
    listing = hub.list_files(repository, commit)
    changes = tuple(_changes(workspace, version, listing, origin.subfolder))
    if listing.find(_path(origin.subfolder, CONFIG_FILE)) is None:
        state = State.GONE
    else:
        state = State.CHANGED if changes else State.SAME_FILES
    return Freshness(version.source, origin, commit, state, changes)


def _read_origin(version: AdapterVersion) -> HubSource:
    try:
        return parse_repository(version.origin.location)
    except UsageError as error:
        raise HubRefused(
            f"`{version.source}` came from `{version.origin.location}`, which cannot be read"
        ) from error


def _path(folder: str | None, name: str) -> str:
    return str(PurePosixPath(folder or "", name))


def _changes(
    workspace: Workspace, version: AdapterVersion, listing: Listing, folder: str | None
) -> Iterable[str]:
    store = workspace.store
    for file in version.files:
        remote = listing.find(_path(folder, file.name))
        if remote is None:
            yield f"{file.name}: deleted"
        elif not digest_file(store.path_of(file.sha256)).are_those_of(remote):
            if file.name == CONFIG_FILE:
                yield from _config_changes(store.read(file.sha256), workspace.hub, listing, remote)
            else:
                yield f"{file.name}: {file.size_bytes} bytes, now {remote.size_bytes}"


def _config_changes(old: bytes, hub: Hub, listing: Listing, file: RemoteFile) -> Iterable[str]:
    try:
        now = load_json(read_small_file(hub, listing, file, max_bytes=MAX_CONFIG_BYTES), what=file.path)
        before = load_json(old, what=file.path)
    except InvalidDocument as error:
        return [f"{CONFIG_FILE}: {error}"]
    if not isinstance(now, dict) or not isinstance(before, dict):
        return [f"{CONFIG_FILE}: no object any more"]
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return [f"{CONFIG_FILE}: {key}: {_show(before, key)} -> {_show(now, key)}" for key in keys] or [
        f"{CONFIG_FILE}: written differently, with the same values"
    ]


def _show(config: dict[str, object], key: str) -> str:
    text = repr(config[key]) if key in config else "absent"
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."
