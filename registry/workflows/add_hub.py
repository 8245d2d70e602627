"""``add`` from the Hub: pinned to a commit, judged by config and header, and only then downloaded.

The order is the point: revision to commit, list of files, sizes, config and header by range requests,
verdict; a broken adapter costs no more than its config and the beginning of its weights. The weights come
last, and what is catalogued are the bytes that the Hub lists for that commit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...files.progress import Bytes, Progress, Step, silent
from ...files.scratch import Purpose, temporary_folder
from ...inspection.adapter import Inspection, inspect_adapter
from ...schemas.bundle import CONFIG_FILE, WEIGHTS_FILE
from ...schemas.errors import AdapterRefused, HubRefused, HubUnavailable, UsageError
from ...schemas.manifest import Origin
from ...schemas.names import CatalogSource, HubSource, check_name, suggest_name
from ..catalog.catalog import Catalog
from ..download_limits import MAX_ADAPTER_FILE_BYTES
from ..hub.client import Hub
from ..hub.download import download_files, outline_adapter
from ..hub.listing import Candidate, Listing
from ..store import Store
from .add import MAX_TEXT_BYTES, TEXT_FILES, Addition, add_folder, check_base

_SHOWN_CANDIDATES = 20


@dataclass(frozen=True, slots=True)
class Found:
    """An adapter on the Hub, and what its config and header say."""

    listing: Listing
    candidate: Candidate
    inspection: Inspection


def find_adapters(
    hub: Hub, source: HubSource, *, every: bool = False
) -> tuple[Listing, tuple[Candidate, ...]]:
    """The commit that a source means, and its adapter; with ``every`` all that the repository holds.

    Raises:
        HubRefused: there is no such repository or revision, or no adapter in it.
        UsageError: the repository holds several, and which one is meant is not said.
        HubUnavailable: the Hub did not answer.
    """
    commit = hub.resolve(source.repository, source.revision)
    listing = hub.list_files(source.repository, commit)
    inside = [each for each in listing.candidates() if _is_below(each.folder, source.subfolder)]
    exact = [each for each in inside if each.folder == (source.subfolder or "")]
    if every and inside:
        return listing, tuple(inside)
    if exact:
        return listing, (exact[0],)
    if len(inside) == 1 and source.subfolder is None:
        return listing, (inside[0],)
    if not inside:
        raise _no_adapter(listing, source)
    names = ", ".join(f"`{each.folder}`" for each in inside[:_SHOWN_CANDIDATES])
    names += ", ..." if len(inside) > _SHOWN_CANDIDATES else ""
    raise UsageError(
        f"`{source.repository}` holds {len(inside)} adapters: {names}",
        hint="name one with `--subfolder`, or take them with `--all`",
    )


def inspect_on_hub(hub: Hub, listing: Listing, candidate: Candidate) -> Found:
    """What config and header say of an adapter whose weights are not downloaded.

    Raises:
        HubRefused, HubUnavailable, HubMismatch: they cannot be had.
    """
    with temporary_folder(Purpose.OUTLINE) as folder:
        outline_adapter(hub, listing, candidate, folder)
        return Found(listing, candidate, inspect_adapter(folder, scan_weights=False))


def add_from_hub(
    catalog: Catalog,
    store: Store,
    hub: Hub,
    listing: Listing,
    candidate: Candidate,
    *,
    name: str | None = None,
    base: str | None = None,
    tags: Iterable[str] = (),
    max_bytes: int = MAX_ADAPTER_FILE_BYTES,
    progress: Progress = silent,
) -> Addition:
    """Judge an adapter on the Hub, then download and catalogue it.

    Args:
        catalog: where it is recorded.
        store: where its bytes go.
        hub: where it comes from.
        listing: the commit that it belongs to.
        candidate: the adapter.
        name: by default made from the repository's name and the subfolder.
        base: the base model, as the person who adds it knows it.
        tags: words attached to the version.
        max_bytes: larger files are refused before anything is downloaded.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        AdapterRefused: it is broken; seen before the weights were downloaded.
        HubRefused: it is too large, or it cannot be had.
        HubMismatch: the bytes that came are not those that the Hub lists.
        HubUnavailable: the Hub did not answer.
        UsageError, AlreadyInCatalog, SourceUnreadable: as ``add_folder``.
    """
    wanted_name = check_name(name if name is not None else suggest_name(candidate.default_name))
    wanted_tags = tuple(check_name(tag, what="tag") for tag in tags)
    if base is not None:
        check_base(base)
    if hub.is_offline and WEIGHTS_FILE not in candidate.files:
        raise HubUnavailable(
            f"the weights of `{candidate}` are not in the local cache, and offline mode is on",
            hint="unset HF_HUB_OFFLINE",
        )
    check_sizes(candidate, max_bytes)
    found = inspect_on_hub(hub, listing, candidate)
    if not found.inspection.verdict.sound:
        raise AdapterRefused(
            f"`{candidate}` is broken and was not downloaded", findings=found.inspection.findings
        )
    known = _find_known(catalog, found, wanted_name) if base is None else None
    if known is not None:
        catalog.change_tags(known, add=wanted_tags)
        return Addition(str(candidate), catalog.find(known), created=False, duplicates=(), skipped=())
    return _download_and_add(
        catalog, store, hub, found, name=wanted_name, base=base, tags=wanted_tags, progress=progress
    )


def _download_and_add(
    catalog: Catalog,
    store: Store,
    hub: Hub,
    found: Found,
    *,
    name: str,
    base: str | None,
    tags: tuple[str, ...],
    progress: Progress,
) -> Addition:
    candidate = found.candidate
    texts = [
        file
        for file in TEXT_FILES
        if file in candidate.files and candidate.files[file].size_bytes <= MAX_TEXT_BYTES
    ]
    files = {file: candidate.files[file] for file in (CONFIG_FILE, WEIGHTS_FILE, *texts)}
    step = Step(f"checking {name}", Bytes(sum(file.size_bytes for file in files.values())), progress)
    with temporary_folder(Purpose.ADD) as folder:
        download_files(hub, found.listing, files, folder, step=step)
        origin = Origin(kind="hub", location=str(candidate), commit=candidate.commit)
        return add_folder(catalog, store, folder, name=name, base=base, tags=tags, origin=origin)


def _find_known(catalog: Catalog, found: Found, name: str) -> CatalogSource | None:
    """The version of that name that has this content already, so that nothing needs to be fetched."""
    sha256 = found.candidate.files[WEIGHTS_FILE].sha256
    canonical = found.inspection.canonical_config_sha256
    if sha256 is None or canonical is None:
        return None
    return next((each for each in catalog.find_content(sha256, canonical) if each.name == name), None)


def check_sizes(candidate: Candidate, max_bytes: int) -> None:
    """Check the listed sizes of config and weights before anything of them is fetched.

    Raises:
        HubRefused: one is larger than ``max_bytes``.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        file = candidate.files.get(name)
        if file is not None and file.size_bytes > max_bytes:
            raise HubRefused(
                f"`{name}` of `{candidate}` has {file.size_bytes} bytes, the limit is {max_bytes}; "
                "nothing was downloaded",
                hint="raise the limit with `--max-bytes`",
            )


def _no_adapter(listing: Listing, source: HubSource) -> HubRefused:
    where = f"`{source.repository}@{listing.commit}`"
    if source.subfolder is not None:
        known = ", ".join(f"`{each.folder or '.'}`" for each in listing.candidates()[:_SHOWN_CANDIDATES])
        return HubRefused(
            f"{where} has no adapter in `{source.subfolder}`", hint=f"it has {known}" if known else None
        )
    return HubRefused(f"{where} holds no adapter: no folder of it has `{CONFIG_FILE}`")


def _is_below(folder: str, parent: str | None) -> bool:
    return parent is None or folder == parent or folder.startswith(f"{parent}/")
