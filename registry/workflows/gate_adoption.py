"""``gate adopt``: a routed model that PEFT saved after training, as a new version of its bundle.

PEFT saves config and weights alone. The saved model states the manifest of its bundle, which the catalog
knows. Members, factors and everything else that is not a gate must be that bundle's, and what is written is
verified against the members' own files like a bundle that was just fused.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...bundle import Bundle
from ...bundle.saved import is_saved_model
from ...files.progress import Progress, silent
from ...fuser.refit import refit_bundle
from ...fuser.trained_gates import read_trained_gates
from ...fuser.verifier import verify_bundle
from ...schemas.bundle import MANIFEST_FILE, Fitting, TrainedFrom
from ...schemas.errors import NotInCatalog, SourceUnreadable, UsageError
from ...schemas.verification import VerificationRecord
from ..catalog.records import BundleVersion
from ..workspace import StrPath, Workspace
from .base_place import BasePlace
from .bundle_folder import find_bundle_folder, write_verified
from .bundle_verification import renaming_by
from .fuse_plan import stored_sources
from .gate_fit import choose_name, find_version, level_of, members_files, register_refit


@dataclass(frozen=True, slots=True)
class GateAdoption:
    """The result of an adoption; ``trained_from`` is the bundle whose gates were trained."""

    folder: Path
    version: BundleVersion
    record: VerificationRecord
    trained_from: TrainedFrom


def adopt_gates(
    workspace: Workspace,
    saved: Path,
    folder: Path,
    *,
    source: StrPath | None = None,
    name: str | None = None,
    place: BasePlace,
    progress: Progress = silent,
) -> GateAdoption:
    """Make a routed model that PEFT saved a verified version of its bundle, and register it.

    Args:
        workspace: in whose catalog the bundle is looked up and the new version registered; its store is
            searched for the members' own files, and a member that is not there is extracted.
        saved: the model's folder; it is not changed.
        folder: the new folder.
        source: the bundle that was trained; by default the one that the model states.
        name: what the catalog calls the new version; by default what it calls that bundle.
        place: the base model, used where the bundle states that the base renamed modules.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        BundleRefused: the bundle is damaged, the model differs from it in more than gates, or in nothing.
        UsageError: the model does not state its bundle, the folder is taken, or the name is malformed.
        NotInCatalog: the bundle is not catalogued.
        FuseRefused: what was written does not verify; nothing is left.
        AlreadyInCatalog: an adapter has the name.
        SourceUnreadable: there is no saved model, or a file cannot be read or written.
    """
    if not is_saved_model(saved):
        raise SourceUnreadable(
            f"`{saved}` is {_instead(saved)}, expected a config of the type `METEORA` and weights as PEFT "
            "writes them",
            hint="give the folder that `save_pretrained` wrote",
        )
    model = Bundle(saved)
    bundle = Bundle.open(
        _find_source(workspace, model) if source is None else find_bundle_folder(workspace, source)
    )
    manifest, catalog = bundle.manifest, workspace.catalog
    bundle_name = choose_name(catalog, name, bundle, folder)
    version = find_version(catalog, bundle)
    trained_from = TrainedFrom(
        bundle=None if version is None else str(version), manifest_sha256=bundle.manifest_sha256
    )
    gates = read_trained_gates(model, bundle, trained_from, progress=progress)
    with members_files(stored_sources(workspace, manifest), bundle, bundle.config.names) as files:
        verify = partial(
            verify_bundle,
            level=level_of(bundle, files),
            sources=files,
            renamed=renaming_by(place, bundle.folder, manifest),
            progress=progress,
        )
        record = write_verified(folder, partial(refit_bundle, bundle, gates, progress=progress), verify)
    registered = register_refit(catalog, folder, bundle_name, manifest, record)
    return GateAdoption(folder, registered, record, trained_from)


def _instead(folder: Path) -> str:
    if (folder / MANIFEST_FILE).is_file():
        return "a bundle already"
    return "not a routed model that PEFT saved"


def _find_source(workspace: Workspace, model: Bundle) -> Path:
    """Return the newest place of the bundle that a saved model states.

    Raises:
        UsageError: it states none.
        NotInCatalog: the catalog does not know it.
    """
    fitted = model.config.gate.fitted
    stated = fitted.trained_from if isinstance(fitted, Fitting) else None
    if stated is None:
        raise UsageError(
            f"`{model.folder}` does not state from which bundle it was trained", hint="name it with `--from`"
        )
    places = [
        place.path
        for place in workspace.catalog.list_bundle_places()
        if place.manifest_sha256 == stated.manifest_sha256
    ]
    if not places:
        raise NotInCatalog(
            f"the catalog has no bundle with the manifest `{stated.manifest_sha256.short}`, from which "
            f"`{model.folder}` was trained",
            hint="name its folder with `--from`",
        )
    return find_bundle_folder(workspace, next((path for path in places if path.is_dir()), places[-1]))
