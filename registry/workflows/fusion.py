"""``fuse``: catalogued adapters become one verified bundle on disk, and a version in the catalog.

The bundle is written beside its target and verified there at level ``source``; only then does it move
into place, and the catalog learns of it last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...bundle.files import check_target
from ...files.progress import Progress, silent
from ...files.reading import real_path
from ...files.scratch import Purpose, temporary_folder
from ...fuser.bundle_writer import GivenGate, require_no_conflicts, write_bundle
from ...fuser.official import ImportedMember, OfficialWeights
from ...fuser.verifier import verify_bundle
from ...schemas.bundle import IMPORTED, Fitting
from ...schemas.errors import BundleRefused, FuseRefused, InvalidDocument, MissingDependency, UsageError
from ...schemas.names import check_name, suggest_name
from ...schemas.plan import FusePlan
from ...schemas.recipe import Recipe
from ...schemas.verification import ATTACHED, Level, VerificationRecord
from ..catalog.records import BundleVersion, NewMember
from ..workspace import Workspace
from .additions import add_folder
from .bundle_folder import check_no_adapter_has, register_bundle, write_verified
from .fuse_plan import Prepared, prepare_fuse

NOT_ATTACHED = f"not {ATTACHED}"


@dataclass(frozen=True, slots=True)
class Fusion:
    """The result of a fuse."""

    folder: Path
    plan: FusePlan
    record: VerificationRecord
    version: BundleVersion


def fuse(
    workspace: Workspace,
    prepared: Prepared,
    folder: Path,
    *,
    name: str | None = None,
    given_gate: GivenGate | None = None,
    progress: Progress = silent,
) -> Fusion:
    """Write, verify and register the bundle of a plan.

    Args:
        workspace: in whose catalog it is registered.
        prepared: members and plan.
        folder: the new folder.
        name: what the catalog calls the bundle, by default made from the folder's name.
        given_gate: used in place of the plan's initialisation.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        FuseRefused: the plan has conflicts, or what was written does not verify; nothing is left.
        UsageError: the folder exists and is not empty, unless it is this very bundle, which is then
            catalogued; or the name is malformed.
        AlreadyInCatalog: an adapter has the name.
        SourceUnreadable: the folder cannot be written.
    """
    bundle_name = check_name(name or suggest_name(real_path(folder).name))
    require_no_conflicts(prepared.plan)
    check_no_adapter_has(workspace.catalog, bundle_name)
    record = write_fused(prepared, folder, given_gate=given_gate, progress=progress)
    members = [
        NewMember(member.name, version, member.weights_sha256, member.config_sha256)
        for version, member in zip(prepared.versions, prepared.members, strict=True)
    ]
    version = register_bundle(workspace.catalog, folder, bundle_name, members, record)
    return Fusion(folder, prepared.plan, record, version)


def write_fused(
    prepared: Prepared,
    folder: Path,
    *,
    given_gate: GivenGate | None = None,
    progress: Progress = silent,
) -> VerificationRecord:
    """Write and verify the bundle of a plan, without a catalog; the folder appears when it verified.

    Raises:
        FuseRefused, UsageError, SourceUnreadable: as ``fuse``.
    """
    write = partial(
        write_bundle,
        prepared.plan,
        prepared.members,
        given_gate=given_gate,
        progress=progress,
    )
    return write_verified(folder, write, lambda written: _verify(written, prepared, progress))


def _verify(folder: Path, prepared: Prepared, progress: Progress) -> VerificationRecord:
    record = verify_bundle(
        folder,
        level=Level.SOURCE,
        sources=prepared.sources,
        renamed=prepared.renamed,
        progress=progress,
    )
    return record.model_copy(update={"notes": (*record.notes, _attach(folder, prepared))})


def _attach(folder: Path, prepared: Prepared) -> str:
    """Attach a bundle to its base without weights, and return what that established.

    Raises:
        FuseRefused: the bundle does not load on its base.
    """
    if prepared.base_folder is None:
        return f"{NOT_ATTACHED}, whose config is not at hand: nothing shows that it loads there"
    try:
        from ...runtime.attachment import attach
        from ...runtime.base_modules import read_base
    except MissingDependency as error:
        return f"{NOT_ATTACHED}: {error.message}"
    base = read_base(prepared.base_folder, prepared.trained_on)
    try:
        attach(folder, base)
    except BundleRefused as error:
        raise FuseRefused(
            f"the bundle does not load on its base: {error.message}", hint=error.hint
        ) from error
    return f"{ATTACHED}, a `{type(base).__name__}` without weights"


def import_official(
    workspace: Workspace,
    weights: Path,
    members: Sequence[ImportedMember],
    folder: Path,
    *,
    base: str,
    top_k: int | None = None,
    temperature: float = 1.0,
    name: str | None = None,
    progress: Progress = silent,
) -> Fusion:
    """Make a bundle of a file in the authors' layout.

    Each member is cut back to its own rank and catalogued as the plain adapter it is; the gates are
    taken as they are. So the bundle verifies at level ``source`` like any other.

    Raises:
        BundleRefused: the file does not have this layout for these members.
        UsageError: the folder is taken, or an option is out of range; nothing was catalogued.
        FuseRefused, AlreadyInCatalog, SourceUnreadable: as ``fuse`` and ``add`` do.
    """
    official = OfficialWeights(weights, members)
    value: dict[str, object] = {"base": base, "top_k": top_k, "temperature": temperature}
    # Everything that can be refused is asked before the members are catalogued.
    check_target(folder)
    _make_recipe(value, [member.name for member in members], members)
    if top_k is not None and top_k > len(members):
        raise UsageError(f"top_k is {top_k}, expected at most the number of members, {len(members)}")
    with temporary_folder(Purpose.IMPORT) as scratch:
        adapters = official.write_adapters(scratch, base=base)
        versions = [add_folder(workspace, adapter, base=base).version for adapter in adapters]
    recipe = _make_recipe(value, [str(version.source) for version in versions], members)
    gate = GivenGate(Fitting(method=IMPORTED, data=()), official.gate)
    return fuse(
        workspace, prepare_fuse(workspace, recipe), folder, name=name, given_gate=gate, progress=progress
    )


def _make_recipe(
    value: dict[str, object], adapters: Sequence[str], members: Sequence[ImportedMember]
) -> Recipe:
    named = [
        {"adapter": adapter, "name": member.name} for adapter, member in zip(adapters, members, strict=True)
    ]
    try:
        return Recipe.from_value(value | {"members": named}, what="the options")
    except InvalidDocument as error:
        raise UsageError(error.message, hint=error.hint) from error
