"""Bundles in folders: found by name, checked for their record, and made so that they appear only verified."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ...bundle import Bundle
from ...bundle.files import check_target, judge_record, staged_target, write_record
from ...bundle.saved import refuse_saved_model
from ...bundle.signers import Signers, require_signing
from ...files.digests import hash_file
from ...files.reading import real_path
from ...files.staging import scratch_folder
from ...schemas.bundle import CONFIG_FILE, MANIFEST_FILE, VERIFICATION_FILE
from ...schemas.digest import Digest
from ...schemas.document import canonical_json, load_json
from ...schemas.errors import (
    AlreadyInCatalog,
    BundleRefused,
    FuseRefused,
    MeteoraError,
    NotInCatalog,
    SourceUnreadable,
    UsageError,
)
from ...schemas.manifest import Manifest, ManifestMember
from ...schemas.names import CatalogSource, FolderSource, parse_path_or_source
from ...schemas.signers import SignedBy
from ...schemas.verification import Level, Outcome, VerificationRecord
from ..catalog.catalog import Catalog
from ..catalog.records import AdapterVersion, BundleVersion, NewBundleVersion, NewMember
from ..workspace import StrPath, Workspace

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
    """Write a bundle beside its place, verify it there, and only then move it into place.

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
    """Return the oldest catalogued adapter version that has a member's content, or None."""
    config = load_json(member.config_text.encode(), what=CONFIG_FILE)
    same = catalog.find_content(member.weights_sha256, Digest.of_bytes(canonical_json(config)))
    return catalog.find(same[0]) if same else None


def register_bundle(
    catalog: Catalog,
    folder: Path,
    name: str,
    members: Sequence[NewMember],
    record: VerificationRecord,
    *,
    claimed_by: str | None = None,
) -> BundleVersion:
    """Record the bundle in a folder as a version in the catalog.

    ``claimed_by`` is where the record came from, if it was not made here.

    Raises:
        AlreadyInCatalog, UsageError, CatalogUnusable: it cannot be catalogued; the hint states that
            the bundle itself is complete.
    """
    facts = Bundle.open(folder).facts
    new = NewBundleVersion(name, real_path(folder), facts, tuple(members), record, claimed_by)
    try:
        return catalog.register_bundle(new)
    except MeteoraError as error:
        error.hint = f"the bundle in `{folder}` is complete; the same command again catalogues it"
        raise


def find_bundle_folder(workspace: Workspace, bundle: StrPath) -> Path:
    """Return the folder of a bundle: that folder itself, or where the catalog last saw the bundle.

    A text may name either, a path is always a folder. The catalog is opened only when a catalogued name
    is looked up, so that a folder can be used without one.

    Raises:
        UsageError: it is malformed, or names a repository on the Hub.
        NotInCatalog: no bundle of that name is catalogued.
        SourceUnreadable: the folder has no bundle.
        BundleRefused: it has a model that PEFT saved.
    """
    source = parse_path_or_source(bundle)
    if isinstance(source, FolderSource):
        folder = source.path
    elif isinstance(source, CatalogSource):
        folder = workspace.catalog.find_bundle(source).path
    else:
        raise UsageError(f"`{bundle}` is a repository on the Hub, expected a folder or a catalogued bundle")
    if not (folder / MANIFEST_FILE).is_file():
        refuse_saved_model(folder)
        raise SourceUnreadable(
            f"`{folder}` is not a bundle: it has no `{MANIFEST_FILE}`",
            hint="`meteora-registry fuse` makes one",
        )
    return folder


def gate_is_fitted(folder: Path) -> bool:
    """Return whether the bundle's gate was fitted; True also where the bundle cannot be opened at all."""
    try:
        return Bundle.open(folder).is_fitted
    except MeteoraError:
        # The command that asked has already reported what is wrong.
        return True


def require_source_record(bundle: Bundle, what: str, *, hint: str) -> VerificationRecord:
    """Return a bundle's record, if a verification of it that passed at level `source` can have written it.

    Args:
        bundle: the bundle.
        what: how messages call it.
        hint: what to do when the bundle has no such record.

    Raises:
        BundleRefused: it is missing, for another manifest, for a lower level or another outcome, or
            contradicts itself or the config.
        InvalidDocument: it was changed after it was written.
    """
    record = bundle.record
    if record is None:
        raise BundleRefused(f"{what} was never verified: it has no `{VERIFICATION_FILE}`", hint=hint)
    manifest_sha256 = bundle.manifest_sha256
    if record.manifest_sha256 != manifest_sha256:
        raise BundleRefused(
            f"{what} was verified with the manifest `{record.manifest_sha256.short}`, and has "
            f"`{manifest_sha256.short}`",
            hint=hint,
        )
    if record.outcome is not Outcome.PASS or record.level is not Level.SOURCE:
        raise BundleRefused(
            f"{what} is verified at level {record.level} with the outcome {record.outcome}, "
            f"expected level {Level.SOURCE} (compared with the members' own files) and {Outcome.PASS}",
            hint=hint,
        )
    if found := judge_record(bundle, record):
        raise BundleRefused(f"{what}: {found[0]}", hint=hint)
    return record


def require_signer(folder: Path, signers: Signers | None, what: str) -> SignedBy | None:
    """Return which accepted signer signed a bundle; None if none is required.

    Raises:
        BundleRefused: it is not signed by one.
        MissingDependency: the packages that check signatures are not installed.
    """
    if signers is None:
        return None
    require_signing()
    from ...bundle.signing import check_signature

    return check_signature(folder, signers, what)
