"""The record of a verification at level source, which a bundle brings along wherever it goes."""

from __future__ import annotations

from ...bundle import Bundle
from ...schemas.bundle import VERIFICATION_FILE
from ...schemas.errors import BundleRefused
from ...schemas.verification import Level, Outcome, VerificationRecord


def require_source_record(bundle: Bundle, what: str, *, hint: str) -> VerificationRecord:
    """The record in a bundle's folder: unchanged, for this very manifest, passed at level source.

    Args:
        bundle: the bundle.
        what: how messages call it.
        hint: what to do when there is no such record.

    Raises:
        BundleRefused: it is missing, for another manifest, or says less than that.
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
            f"expected level {Level.SOURCE} and {Outcome.PASS}",
            hint=hint,
        )
    return record
