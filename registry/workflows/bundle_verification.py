"""``verify``: a bundle checked against itself, or also against its members' own files in the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...bundle import Bundle
from ...bundle.files import write_record
from ...bundle.signature import has_signature
from ...bundle.signers import Signers, signers_of_environment
from ...files.progress import Progress, silent
from ...files.reading import real_path
from ...fuser.verifier import verify_bundle
from ...schemas.bundle import BundleConfig
from ...schemas.errors import MeteoraError, UsageError
from ...schemas.manifest import Manifest
from ...schemas.names import HubSource, parse_path_or_source
from ...schemas.signers import SignedBy
from ...schemas.verification import Level, VerificationRecord
from ..catalog.catalog import Catalog
from ..workspace import StrPath, Workspace
from .base_facts import read_base_facts, read_cached_facts
from .base_place import BasePlace
from .bundle_folder import find_bundle_folder, gate_is_fitted, require_signer
from .fuse_plan import stored_sources

if TYPE_CHECKING:
    from .origins import Refetched


@dataclass(frozen=True, slots=True)
class Verified:
    """The record of a verification, whether the bundle's gate was fitted, and who signed it.

    ``signed_by`` is None unless a signer was required, and ``has_signature`` is True if it has a signature.
    """

    record: VerificationRecord
    gate_fitted: bool
    has_signature: bool
    signed_by: SignedBy | None


def verify(
    workspace: Workspace,
    bundle: StrPath,
    *,
    level: Level,
    place: BasePlace,
    refetch: bool = False,
    keep_record: bool = False,
    signers: Signers | None = None,
    progress: Progress = silent,
) -> Verified:
    """Verify a bundle on every backend of this machine, and note the outcome in the catalog.

    Args:
        workspace: at level `source`, its store is searched for the members' own files.
        bundle: its folder, its catalogued name, or a repository on the Hub, which is fetched, verified, and
            not kept.
        level: what is compared.
        place: the base model, used where the bundle states that the base renamed modules; by default the
            bundle's own, if the local Hub cache has it.
        refetch: fetch the members from the origins on the Hub that the manifest names, to compare with.
        keep_record: write the record into the bundle, in place of the one that is there.
        signers: one of them must have signed it; by default those of METEORA_SIGNERS, if that is set.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        SourceUnreadable: the manifest or the base cannot be read, or the record cannot be written.
        NotInCatalog: no bundle of that name is catalogued.
        UsageError: the record of a bundle on the Hub is to be kept, or members are to be fetched at level
            `integrity`.
        BundleRefused: it is not signed by an accepted signer.
        HubRefused, HubUnavailable, HubMismatch: a bundle on the Hub cannot be had.
    """
    if refetch and level is not Level.SOURCE:
        raise UsageError(
            "refetching goes with level `source`, which compares the members with their own files",
            hint="leave it out, or ask for that level",
        )
    source = parse_path_or_source(bundle)
    signers = signers_of_environment() if signers is None else signers
    if isinstance(source, HubSource):
        if keep_record:
            raise UsageError(
                "the record can only be written into a bundle on this machine", hint="pull it first"
            )
        with _fetched(workspace, source, progress) as folder:
            signed_by = require_signer(folder, signers, f"`{source}`")
            record = _verify_folder(workspace, folder, level, place, progress, refetch=refetch)
            return Verified(record, gate_is_fitted(folder), has_signature(folder), signed_by)
    folder = find_bundle_folder(workspace, bundle)
    signed_by = require_signer(folder, signers, f"`{folder}`")
    record = _verify_folder(workspace, folder, level, place, progress, refetch=refetch)
    if keep_record:
        write_record(folder, record)
    workspace.note(lambda catalog: _note(catalog, folder, record, signed_by))
    return Verified(record, gate_is_fitted(folder), has_signature(folder), signed_by)


def _note(catalog: Catalog, folder: Path, record: VerificationRecord, signed_by: SignedBy | None) -> None:
    for version in catalog.record_verification(record, real_path(folder)):
        if signed_by is not None:
            catalog.record_signature(version, "check-signature", signed_by)


@contextmanager
def _fetched(workspace: Workspace, source: HubSource, progress: Progress) -> Iterator[Path]:
    # Imported for bundles on the Hub alone: huggingface_hub may refuse the environment.
    from .hub_bundles import fetched_bundle

    with fetched_bundle(workspace.hub, source, progress=progress) as folder:
        yield folder


def _verify_folder(
    workspace: Workspace,
    folder: Path,
    level: Level,
    place: BasePlace,
    progress: Progress,
    *,
    refetch: bool,
) -> VerificationRecord:
    manifest = _manifest_if_sound(folder)
    # Level `integrity` needs no store, nor a home that can be found.
    needs_sources = manifest is not None and level is Level.SOURCE
    stored = stored_sources(workspace, manifest) if manifest and needs_sources else {}
    with ExitStack() as stack:
        fetched = stack.enter_context(_refetched(workspace, manifest)) if refetch and manifest else None
        record = verify_bundle(
            folder,
            level=level,
            sources=stored | fetched.files if fetched else stored,
            renamed=renaming_by(place, folder, manifest) if manifest else None,
            with_triton=True,
            progress=progress,
        )
    if fetched is None or manifest is None:
        return record
    if not record.problems:
        _confirm(workspace, manifest, fetched)
    return record.model_copy(update={"notes": (*record.notes, *fetched.notes)})


def _refetched(workspace: Workspace, manifest: Manifest) -> AbstractContextManager[Refetched]:
    # Imported when it is asked for: huggingface_hub may refuse the environment.
    from .origins import refetched

    return refetched(workspace, manifest)


def _confirm(workspace: Workspace, manifest: Manifest, fetched: Refetched) -> None:
    from .origins import confirm_origins

    workspace.note(lambda _: confirm_origins(workspace, manifest, fetched))


def renaming_by(place: BasePlace, folder: Path, manifest: Manifest) -> Mapping[str, str] | None:
    """Return what the base calls the module paths of old members; None if it is not at hand."""
    old_paths = manifest.renamed_paths
    config = _config_if_sound(folder)
    if config is None:
        return None
    if place.folder is not None:
        return read_base_facts(place.folder, place.folder.name, old_paths, config.trained_on).present
    if not old_paths:
        return None
    name = place.name or config.base_model_name_or_path
    _, found = read_cached_facts(name, config.revision, old_paths, config.trained_on)
    return found.present if found else None


def _config_if_sound(folder: Path) -> BundleConfig | None:
    try:
        return Bundle(folder).config
    except MeteoraError:
        # As with the manifest.
        return None


def _manifest_if_sound(folder: Path) -> Manifest | None:
    try:
        return Bundle(folder).manifest
    except MeteoraError:
        # The verification itself reports what is wrong with the manifest.
        return None
