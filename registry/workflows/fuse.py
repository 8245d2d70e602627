"""``fuse``: catalogued adapters become one verified bundle on disk, and a version in the catalog.

The bundle is written beside its target and verified there at level ``source``; only then does it move
into place, and the catalog learns of it last.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...files.progress import Progress, silent
from ...files.reading import real_path
from ...fuser.verify import verify_bundle
from ...fuser.write import GivenGate, require_no_conflicts, write_bundle
from ...schemas.names import check_name, suggest_name
from ...schemas.plan import FusePlan
from ...schemas.verification import Level, VerificationRecord
from ..catalog.catalog import Catalog
from ..catalog.records import BundleVersion, NewMember
from .bundle_folder import check_no_adapter_has, register_bundle, write_verified
from .prepare import Prepared


@dataclass(frozen=True, slots=True)
class Fusion:
    """What came of a fuse."""

    folder: Path
    plan: FusePlan
    record: VerificationRecord
    version: BundleVersion


def fuse(
    catalog: Catalog,
    prepared: Prepared,
    folder: Path,
    *,
    name: str | None = None,
    given_gate: GivenGate | None = None,
    progress: Progress = silent,
) -> Fusion:
    """Write, verify and register the bundle of a plan.

    Args:
        catalog: where it is registered.
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
    check_no_adapter_has(catalog, bundle_name)
    record = write_fused(prepared, folder, given_gate=given_gate, progress=progress)
    members = [
        NewMember(member.name, version, member.weights_sha256, member.config_sha256)
        for version, member in zip(prepared.versions, prepared.members, strict=True)
    ]
    version = register_bundle(catalog, folder, bundle_name, members, record)
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
    return verify_bundle(
        folder,
        level=Level.SOURCE,
        sources=prepared.sources,
        renamed=prepared.renamed,
        progress=progress,
    )
