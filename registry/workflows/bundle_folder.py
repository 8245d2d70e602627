"""A new bundle, whichever workflow makes it: its name, its folder only when it verified, then the catalog."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ...bundle import Bundle
from ...bundle.files import check_target, staged_target, write_record
from ...files.digests import hash_file
from ...files.reading import real_path
from ...files.staging import scratch_folder
from ...schemas.bundle import CONFIG_FILE, MANIFEST_FILE
from ...schemas.digest import Digest
from ...schemas.document import canonical_json, load_json
from ...schemas.errors import AlreadyInCatalog, FuseRefused, MeteoraError, NotInCatalog
from ...schemas.manifest import Manifest, ManifestMember
from ...schemas.names import CatalogSource
from ...schemas.verification import Outcome, VerificationRecord
from ..catalog.catalog import Catalog
from ..catalog.records import AdapterVersion, BundleVersion, NewBundleVersion, NewMember

_SHOWN_REASONS = 20
_HINTS = {
    Outcome.FAIL: "nothing was catalogued; if it was just written, the disk or meteora-registry is at fault",
    Outcome.INCONCLUSIVE: "nothing was catalogued; what is missing can be added with `meteora-registry add`",
}


def check_no_adapter_has(catalog: Catalog, name: str) -> None:
    """Pass if a bundle may have the name; asked before anything is written, and again when registering.

    Raises:
        AlreadyInCatalog: an adapter has it.
    """
    with suppress(NotInCatalog):
        if isinstance(catalog.find_any(CatalogSource(name)), AdapterVersion):
            raise AlreadyInCatalog(
                f"the name `{name}` is taken by an adapter", hint="choose another with `--name`"
            )


def write_verified(
    folder: Path,
    write: Callable[[Path], Manifest],
    verify: Callable[[Path], VerificationRecord],
) -> VerificationRecord:
    """Have a bundle written beside its place, verified there, and only then moved into it.

    Where an earlier run was interrupted after the move, the bundle that is there is verified again.

    Raises:
        FuseRefused: what was written does not verify; nothing is left.
        UsageError: the folder exists and is not empty, and is not this very bundle.
        SourceUnreadable: the folder cannot be written.
    """
    if (folder / MANIFEST_FILE).is_file():
        _check_is_the_same(folder, write)
        return _require_pass(verify(folder), folder)
    with staged_target(folder) as staging:
        write(staging)
        record = _require_pass(verify(staging), folder)
        write_record(staging, record)
    return record


def _check_is_the_same(folder: Path, write: Callable[[Path], Manifest]) -> None:
    """Pass if the bundle that is there is the one that would be written.

    Then an earlier run was interrupted after the bundle moved into place, and only the catalog lacks it.

    Raises:
        UsageError: it is another bundle.
    """
    with scratch_folder(folder) as scratch:
        write(scratch)
        if hash_file(scratch / MANIFEST_FILE) != hash_file(folder / MANIFEST_FILE):
            check_target(folder)


def _require_pass(record: VerificationRecord, folder: Path) -> VerificationRecord:
    if record.outcome is not Outcome.PASS:
        reasons = (*record.problems, *record.unchecked)
        more = [f"and {len(reasons) - _SHOWN_REASONS} more"] if len(reasons) > _SHOWN_REASONS else []
        raise FuseRefused(
            f"the bundle in `{folder}` does not verify: {record.outcome}",
            conflicts=[*reasons[:_SHOWN_REASONS], *more],
            hint=_HINTS[record.outcome],
        )
    return record


def find_member(catalog: Catalog, member: ManifestMember) -> AdapterVersion | None:
    """The catalogued adapter version that has a member's content, the oldest of them."""
    config = load_json(member.config_text.encode(), what=CONFIG_FILE)
    same = catalog.find_content(member.weights_sha256, Digest.of_bytes(canonical_json(config)))
    return catalog.find(same[0]) if same else None


def register_bundle(
    catalog: Catalog, folder: Path, name: str, members: Sequence[NewMember], record: VerificationRecord
) -> BundleVersion:
    """The bundle in a folder as a version in the catalog.

    Raises:
        AlreadyInCatalog, UsageError, CatalogUnusable: it cannot be catalogued; the hint says that the
            bundle stands.
    """
    bundle = Bundle.open(folder)
    config, fitted = bundle.config, bundle.config.gate.fitted
    new = NewBundleVersion(
        name=name,
        manifest_sha256=record.manifest_sha256,
        path=real_path(folder),
        size_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        base=config.base_model_name_or_path,
        base_revision=config.revision,
        dtype=str(bundle.dtype),
        top_k=config.top_k,
        temperature=config.temperature,
        gate_kind=config.gate.kind,
        gate_scope=config.gate.scope,
        gate_fitted=fitted if isinstance(fitted, str) else fitted.method,
        members=tuple(members),
        verification=record,
    )
    try:
        return catalog.register_bundle(new)
    except MeteoraError as error:
        error.hint = f"the bundle stands whole in `{folder}`; the same command again catalogues it"
        raise
