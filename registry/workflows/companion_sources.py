"""``validate --with``: what adapters are to be fused with, by its configs and headers.

A folder on this machine, a catalogued name, or a repository on the Hub, of which no weights are fetched. None
of it needs torch, and only a catalogued name needs a catalog.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...bundle import Bundle
from ...bundle.member import QuotedMember
from ...files.scratch import Purpose, temporary_folder
from ...inspection.adapter import inspect_adapter, inspect_files
from ...inspection.folder import file_of_link
from ...inspection.inspection import Inspection
from ...schemas.bundle import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from ...schemas.errors import SourceUnreadable, UsageError
from ...schemas.names import CatalogSource, FolderSource, HubSource, parse_source
from ..workspace import Workspace

if TYPE_CHECKING:
    from ..hub.client import Hub


@dataclass(frozen=True, slots=True)
class Companion:
    """An adapter to be fused with; ``weights`` is absent where only a header is at hand.

    ``base`` is what the catalog calls its base, or what it declares.
    """

    inspection: Inspection
    base: str | None
    weights: Path | None = None


def called(declared: str | None, name_of_base: Callable[[str], str | None]) -> str | None:
    """Return what a declared base is called; the name as it is declared where none is known."""
    return (name_of_base(declared) or declared) if declared else None


def base_names(workspace: Workspace) -> Callable[[str], str | None]:
    """Return a function from a base's name to what the catalog calls it; without a catalog, to None.

    The home is looked for when a name is asked for, and need not be there.
    """
    return lambda name: workspace.catalog.name_of_base(name) if _has_catalog(workspace) else None


def _has_catalog(workspace: Workspace) -> bool:
    try:
        return workspace.home.catalog_url is not None or workspace.home.catalog_file.exists()
    except (SourceUnreadable, UsageError):
        return False


def inspect_companions(workspace: Workspace, sources: Iterable[str]) -> dict[str, Companion]:
    """Inspect the adapters and the members of bundles that SOURCEs name; return them by name.

    Raises:
        UsageError: one is malformed, or a repository with several adapters.
        NotInCatalog: nothing is catalogued under that name.
        SourceUnreadable, InvalidDocument, AdapterRefused: its files cannot be read.
        HubRefused, HubUnavailable, HubMismatch: they cannot be had.
    """
    found: dict[str, Companion] = {}
    for source in sources:
        found |= _inspect(workspace, source)
    return found


def _inspect(workspace: Workspace, text: str) -> dict[str, Companion]:
    name_of_base = base_names(workspace)
    match parse_source(text):
        case FolderSource(path):
            if (path / MANIFEST_FILE).is_file():
                return _quoted(path.name, Bundle(path).members, name_of_base)
            inspection = inspect_adapter(path)
            base = called(inspection.declared_base, name_of_base)
            return {text: Companion(inspection, base, file_of_link(path / WEIGHTS_FILE))}
        case CatalogSource() as source:
            version = workspace.catalog.find(source)
            config, weights = (
                workspace.store.path_of(version.file(name).sha256) for name in (CONFIG_FILE, WEIGHTS_FILE)
            )
            base = version.base_model or version.base
            return {text: Companion(inspect_files(config, weights), base, weights)}
        case HubSource() as source:
            return _inspect_on_hub(workspace.hub, text, source, name_of_base)


def _inspect_on_hub(
    hub: Hub, text: str, source: HubSource, name_of_base: Callable[[str], str | None]
) -> dict[str, Companion]:
    """Inspect a bundle by its manifest, or an adapter by its config and the header of its weights."""
    # They need the Hub's client.
    from .hub_adapters import find_adapters, inspect_on_hub
    from .remote_bundles import find_bundle

    listing = hub.list_files(*hub.locate(source.repository, source.revision))
    if listing.is_bundle and source.subfolder is None:
        with temporary_folder(Purpose.OUTLINE) as scratch:
            bundle = find_bundle(hub, HubSource(listing.repository, listing.commit), scratch)
        return _quoted(text, map(QuotedMember, bundle.manifest.members), name_of_base)
    try:
        (candidate,) = find_adapters(hub, source)
    except UsageError as error:
        raise UsageError(
            error.message, hint="name one by its folder, such as `--with org/name@REVISION/FOLDER`"
        ) from error
    # Its digest is in the list of files, so that an equal adapter is known without fetching it.
    inspection = replace(inspect_on_hub(hub, candidate), weights_sha256=candidate.files[WEIGHTS_FILE].sha256)
    return {text: Companion(inspection, called(inspection.declared_base, name_of_base))}


def _quoted(
    name: str, members: Iterable[QuotedMember], name_of_base: Callable[[str], str | None]
) -> dict[str, Companion]:
    return {
        f"{name}:{member.name}": Companion(
            member.inspection, called(member.inspection.declared_base, name_of_base)
        )
        for member in members
    }
