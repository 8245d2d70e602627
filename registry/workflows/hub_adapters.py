"""``add`` from the Hub: pinned to a commit, judged by config and header, and only then downloaded.

The order is the point: revision to commit, list of files, sizes, config and header by range requests,
verdict; a broken adapter costs no more than its config and the beginning of its weights. The weights come
last, and what is catalogued are the bytes that the Hub lists for that commit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...files.progress import Bytes, Progress, Step, silent
from ...files.scratch import Purpose, temporary_folder
from ...inspection.adapter import Inspection, inspect_adapter
from ...inspection.card import read_license
from ...schemas.base_name import present_name
from ...schemas.bundle import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from ...schemas.errors import HubRefused, HubUnavailable, MeteoraError, UsageError
from ...schemas.finding import Verdict
from ...schemas.limits import MAX_ADAPTER_FILE_BYTES
from ...schemas.manifest import Origin
from ...schemas.names import CatalogSource, HubSource, check_name, suggest_name
from ..catalog.catalog import Catalog
from ..hub.client import Hub
from ..hub.download import download_files, outline_adapter
from ..hub.listing import Candidate, Listing
from ..workspace import Workspace
from .additions import MAX_TEXT_BYTES, TEXT_FILES, Addition, add_folder
from .base_place import check_base

_SHOWN_CANDIDATES = 20


def find_adapters(hub: Hub, source: HubSource, *, every: bool = False) -> tuple[Candidate, ...]:
    """Return the adapter that a source means, at its commit; with ``every`` all that the repository has.

    Raises:
        HubRefused: the repository, the revision or an adapter in it does not exist.
        UsageError: the repository has several, and none of them is named.
        HubUnavailable: the Hub did not answer.
    """
    # A repository that was renamed is recorded under its present name.
    listing = hub.list_files(*hub.locate(source.repository, source.revision))
    inside = [each for each in listing.candidates() if _is_below(each.folder, source.subfolder)]
    exact = [each for each in inside if each.folder == (source.subfolder or "")]
    if every and inside:
        return tuple(inside)
    if exact:
        return (exact[0],)
    if len(inside) == 1 and source.subfolder is None:
        return (inside[0],)
    if not inside:
        raise _no_adapter(listing, source)
    names = ", ".join(f"`{each.folder}`" for each in inside[:_SHOWN_CANDIDATES])
    names += ", ..." if len(inside) > _SHOWN_CANDIDATES else ""
    raise UsageError(
        f"`{source.repository}` holds {len(inside)} adapters: {names}",
        hint="name one with `--subfolder`, or take them with `--all`",
    )


def inspect_on_hub(hub: Hub, candidate: Candidate) -> Inspection:
    """Inspect config and header of an adapter whose weights are not downloaded.

    Raises:
        HubRefused, HubUnavailable, HubMismatch: they cannot be had.
    """
    with temporary_folder(Purpose.OUTLINE) as folder:
        outline_adapter(hub, candidate, folder)
        return inspect_adapter(folder, scan_weights=False)


def require_sound(hub: Hub, candidate: Candidate, *, max_bytes: int) -> Inspection:
    """Inspect an adapter before its weights are downloaded, and refuse what is not worth the download.

    Raises:
        AdapterRefused: its config or its header shows that it is broken.
        HubRefused: it is larger than ``max_bytes``, or it cannot be had.
        HubUnavailable: the Hub did not answer, or offline the cache does not have it.
    """
    if hub.is_offline and WEIGHTS_FILE not in candidate.files:
        raise HubUnavailable(
            f"the weights of `{candidate}` are not in the local cache, and offline mode is on",
            hint="unset HF_HUB_OFFLINE",
        )
    check_sizes(candidate, max_bytes)
    inspection = inspect_on_hub(hub, candidate)
    inspection.refuse_broken(f"`{candidate}` is broken and was not downloaded")
    return inspection


def download_adapter(
    hub: Hub, candidate: Candidate, folder: Path, *, name: str, progress: Progress = silent
) -> Origin:
    """Download an adapter with its card and licence into a folder, and return its origin.

    Args:
        hub: where it comes from.
        candidate: the adapter.
        folder: an empty folder.
        name: how progress names the adapter.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        HubMismatch: the bytes that came are not those that the Hub lists.
        HubRefused, HubUnavailable: they cannot be had.
        SourceUnreadable: the disk is full or cannot be written.
    """
    texts = [
        file
        for file in TEXT_FILES
        if file in candidate.files and candidate.files[file].size_bytes <= MAX_TEXT_BYTES
    ]
    files = {file: candidate.files[file] for file in (CONFIG_FILE, WEIGHTS_FILE, *texts)}
    step = Step(f"checking {name}", Bytes(sum(file.size_bytes for file in files.values())), progress)
    download_files(hub, candidate.listing, files, folder, step=step)
    return Origin(kind="hub", location=str(candidate), commit=candidate.listing.commit)


def add_from_hub(
    workspace: Workspace,
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
        workspace: whose catalog and store it goes into, from whose Hub.
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
    hub, catalog = workspace.hub, workspace.catalog
    inspection = require_sound(hub, candidate, max_bytes=max_bytes)
    known = _find_known(catalog, candidate, inspection, wanted_name) if base is None else None
    if known is not None:
        catalog.change_tags(known, add=wanted_tags)
        return Addition(str(candidate), catalog.find(known), created=False, duplicates=(), skipped=())
    with temporary_folder(Purpose.ADD) as folder:
        origin = download_adapter(hub, candidate, folder, name=wanted_name, progress=progress)
        addition = add_folder(workspace, folder, name=wanted_name, base=base, tags=wanted_tags, origin=origin)
        return _with_confirmed_origin(catalog, addition, origin, read_license(folder / CARD_FILE))


def _with_confirmed_origin(
    catalog: Catalog, addition: Addition, origin: Origin, license_name: str | None
) -> Addition:
    """Drop the claims that bundles made of this origin for these files, which came from there just now."""
    content = addition.version.weights_sha256, addition.version.config_sha256
    if not any(catalog.find_claims(*content)):
        return addition
    catalog.confirm_origin(*content, str(origin), license_name)
    return dataclasses.replace(addition, version=catalog.find(addition.version.source))


def _find_known(
    catalog: Catalog, candidate: Candidate, inspection: Inspection, name: str
) -> CatalogSource | None:
    """Return the version of that name that has this content already, so that nothing needs to be fetched.

    One of which only a bundle claims where it came from is fetched, which shows it.
    """
    sha256 = candidate.files[WEIGHTS_FILE].sha256
    canonical = inspection.canonical_config_sha256
    if sha256 is None or canonical is None:
        return None
    same = next((each for each in catalog.find_content(sha256, canonical) if each.name == name), None)
    return None if same is None or catalog.find(same).claimed_by else same


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


@dataclass(frozen=True, slots=True)
class Match:
    """One adapter, or a repository with the ``problem`` that kept it from being read.

    ``max_rank`` is None for an adapter without LoRA factors, ``size_bytes`` where there are no weights.
    """

    repository: str
    commit: str | None
    folder: str
    max_rank: int | None
    size_bytes: int | None
    verdict: Verdict | None
    problem: str | None
    candidate: Candidate | None


def search(hub: Hub, base: str, *, limit: int) -> Iterator[Match]:
    """Yield every adapter in at most ``limit`` repositories that name this base, the most downloaded first.

    Of each only the list of files, the config and the header are fetched. One that cannot be read does
    not stop the others; a Hub that does not answer does.

    Raises:
        HubUnavailable: the Hub did not answer.
    """
    for repository in hub.find_adapters(present_name(base), limit=limit):
        try:
            listing = hub.list_files(*hub.locate(repository))
            for candidate in listing.candidates():
                yield _look(hub, candidate)
        except HubUnavailable:
            raise
        except MeteoraError as error:
            yield Match(repository, None, "", None, None, None, error.message, None)


def _look(hub: Hub, candidate: Candidate) -> Match:
    # A file with a hole as large as the listed size is made for the inspection.
    check_sizes(candidate, MAX_ADAPTER_FILE_BYTES)
    inspection = inspect_on_hub(hub, candidate)
    weights = candidate.files.get(WEIGHTS_FILE)
    return Match(
        repository=candidate.listing.repository,
        commit=candidate.listing.commit,
        folder=candidate.folder,
        max_rank=inspection.inventory.max_rank if inspection.inventory else None,
        size_bytes=weights.size_bytes if weights else None,
        verdict=inspection.verdict,
        problem=None,
        candidate=candidate,
    )
