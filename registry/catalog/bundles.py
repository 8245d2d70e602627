"""Bundle versions, their members and their verifications: from values to rows and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from sqlalchemy import select
from sqlalchemy.orm import Session, contains_eager, selectinload

from ...schemas.digest import Digest
from ...schemas.document import load_json
from ...schemas.errors import BundleRefused
from ...schemas.evaluation import EvaluationSummary
from ...schemas.facts import values_of
from ...schemas.names import CatalogSource
from ...schemas.signers import SignedBy
from ...schemas.verification import Level, Outcome, VerificationRecord
from . import models
from .column_types import clean_foreign_text
from .entries import begin_version, find_version, source_of
from .events import events_of, record_event
from .models import bundle_versions
from .records import (
    BundleMember,
    BundleVersion,
    Event,
    MeasuredEvaluation,
    NewBundleVersion,
    NewMember,
    Verification,
)
from .search_index import is_latest

_MAX_RECORD_BYTES = 256 << 20
# The names of the events: it was signed here, or a signature was checked here.
SignatureAction = Literal["sign", "check-signature"]


def register_bundle(session: Session, new: NewBundleVersion) -> BundleVersion:
    """Return the version with this manifest, new or already there, now at ``new.path``.

    Raises:
        UsageError: the name is malformed.
        AlreadyInCatalog: an adapter has the name.
    """
    row = _find_manifest_of(session, new)
    if row is None:
        row = _insert(session, new)
    elif row.path != str(new.path):
        record_event(session, "move", models.BUNDLE, new.name, row.number, previous=row.path)
        row.path = str(new.path)
    session.flush()
    if new.verification is not None:
        _add_verification(session, row, new.verification, claimed_by=new.claimed_by)
    session.flush()
    # Read the record back from the database: foreign text may have been cut or cleaned.
    session.expire_all()
    return bundle_record(row)


def record_verification(
    session: Session, record: VerificationRecord, path: Path
) -> tuple[CatalogSource, ...]:
    """Add a record to the versions with its manifest in ``path``, and return them.

    A copy elsewhere may have been tampered with, so the catalogued bundle is not marked as failed.
    """
    rows = _rows_in(session, path, record.manifest_sha256)
    for row in rows:
        _add_verification(session, row, record)
    return tuple(map(source_of, rows))


def is_verified(session: Session, manifest_sha256: Digest) -> bool:
    """Return whether a verification that was made here passed for this manifest."""
    rows = session.scalars(
        select(models.Verification)
        .join(models.BundleVersion, models.BundleVersion.id == models.Verification.bundle_version_id)
        .where(
            bundle_versions.c.manifest_sha256 == manifest_sha256,
            models.Verification.outcome == Outcome.PASS,
            models.Verification.claimed_by.is_(None),
        )
    )
    return any(not read_record(row.record).contradictions() for row in rows)


def record_signature(
    session: Session, source: CatalogSource, action: SignatureAction, signed_by: SignedBy
) -> None:
    """Add the event that a bundle was signed, or that its signature was checked.

    Raises:
        NotInCatalog: there is no such version.
    """
    row = find_version(session, source, models.BundleVersion)
    details = {"method": signed_by.method, "signer": clean_foreign_text(signed_by.signer)}
    details |= {"fingerprint": str(signed_by.fingerprint)}
    details |= {"issuer": signed_by.issuer} if signed_by.issuer else {}
    record_event(session, action, models.BUNDLE, row.entry.name, row.number, **details)


def list_signatures(session: Session, source: CatalogSource) -> tuple[Event, ...]:
    """Return the events of ``record_signature`` of one version, the newest first.

    Raises:
        NotInCatalog: there is no such version.
    """
    version = find_version(session, source, models.BundleVersion)
    return events_of(session, version, get_args(SignatureAction))


def find_in(session: Session, path: Path, manifest_sha256: Digest) -> tuple[CatalogSource, ...]:
    """Return the versions with the manifest in ``path``, the oldest first."""
    return tuple(map(source_of, _rows_in(session, path, manifest_sha256)))


def _rows_in(session: Session, path: Path, manifest_sha256: Digest) -> Sequence[models.BundleVersion]:
    return session.scalars(
        select(models.BundleVersion)
        .where(
            bundle_versions.c.manifest_sha256 == manifest_sha256,
            models.BundleVersion.path == str(path),
        )
        .order_by(models.BundleVersion.id)
    ).all()


def list_bundles(session: Session) -> tuple[BundleVersion, ...]:
    """Return the latest version of every bundle, ordered by name."""
    row = models.BundleVersion
    adapter = selectinload(row.members).selectinload(models.BundleMember.adapter_version)
    latest = (
        select(row)
        .join(row.entry)
        .where(is_latest())
        .order_by(models.Entry.name)
        # Otherwise each of them is a statement of its own for each bundle.
        .options(
            contains_eager(row.entry),
            adapter.selectinload(models.AdapterVersion.entry),
            selectinload(row.verifications),
            selectinload(row.evaluations),
            selectinload(row.tags),
            selectinload(row.aliases),
        )
    )
    return tuple(map(bundle_record, session.scalars(latest)))


def bundle_record(row: models.BundleVersion) -> BundleVersion:
    """Return the record of a row."""
    return BundleVersion(
        **values_of(row.facts),
        id=row.id,
        name=row.entry.name,
        version=row.number,
        path=Path(row.path),
        members=tuple(map(_member_record, row.members)),
        verifications=tuple(map(_verification_record, row.verifications)),
        evaluations=tuple(map(_evaluation_record, row.evaluations)),
        tags=tuple(tag.tag for tag in row.tags),
        aliases=tuple(alias.alias for alias in row.aliases),
        note=row.entry.note,
        owner=row.entry.owner,
        created_at=row.created_at,
    )


def record_evaluation(
    session: Session, manifest_sha256: Digest, summary: EvaluationSummary
) -> tuple[CatalogSource, ...]:
    """Record what bundles with this manifest scored, and return the versions that have it.

    Nothing is recorded if there is none.
    """
    sources = find_manifest(session, manifest_sha256)
    if not sources:
        return ()
    session.add(
        models.Evaluation(
            manifest_sha256=manifest_sha256,
            items=summary.items,
            of_members=summary.of_members,
            summary=summary.model_dump(mode="json"),
        )
    )
    for source in sources:
        details = {"items": summary.items, "of_members": summary.of_members}
        record_event(session, "evaluate", models.BUNDLE, source.name, source.version, **details)
    return sources


def find_manifest(session: Session, manifest_sha256: Digest) -> tuple[CatalogSource, ...]:
    """Return every version with this manifest, the oldest first."""
    rows = session.scalars(
        select(models.BundleVersion)
        .where(bundle_versions.c.manifest_sha256 == manifest_sha256)
        .order_by(models.BundleVersion.id)
    )
    return tuple(map(source_of, rows))


def find_evaluations(session: Session, manifest_sha256: Digest) -> tuple[MeasuredEvaluation, ...]:
    """Return the evaluations of bundles with this manifest, the oldest first."""
    rows = session.scalars(
        select(models.Evaluation)
        .where(models.Evaluation.manifest_sha256 == manifest_sha256)
        .order_by(models.Evaluation.id)
    )
    return tuple(map(_evaluation_record, rows))


def _evaluation_record(row: models.Evaluation) -> MeasuredEvaluation:
    return MeasuredEvaluation(
        row.created_at,
        row.items,
        row.of_members,
        EvaluationSummary.from_value(row.summary, what="evaluation"),
    )


def read_record(text: str) -> VerificationRecord:
    """Return the verification record in a row.

    Raises:
        InvalidDocument: it is not a record, or was changed.
    """
    data, what = text.encode(), "verification record"
    return VerificationRecord.unseal(load_json(data, what=what, max_bytes=_MAX_RECORD_BYTES), data, what=what)


def _find_manifest_of(session: Session, new: NewBundleVersion) -> models.BundleVersion | None:
    return session.scalars(
        select(models.BundleVersion)
        .join(models.BundleVersion.entry)
        .where(models.Entry.name == new.name, bundle_versions.c.manifest_sha256 == new.facts.manifest_sha256)
    ).first()


def _insert(session: Session, new: NewBundleVersion) -> models.BundleVersion:
    entry, number = begin_version(session, new.name, models.BUNDLE)
    row = models.BundleVersion(
        entry=entry,
        number=number,
        facts=new.facts,
        path=str(new.path),
        members=[_member_row(position, member) for position, member in enumerate(new.members)],
    )
    session.add(row)
    record_event(
        session,
        "add",
        models.BUNDLE,
        new.name,
        number,
        manifest_sha256=str(new.facts.manifest_sha256),
        path=row.path,
        gate=new.facts.gate_fitted,
    )
    return row


def _member_row(position: int, member: NewMember) -> models.BundleMember:
    return models.BundleMember(
        position=position,
        name=member.name,
        adapter_version_id=member.adapter.id if member.adapter else None,
        weights_sha256=member.weights_sha256,
        config_sha256=member.config_sha256,
    )


def _member_record(row: models.BundleMember) -> BundleMember:
    adapter = source_of(row.adapter_version) if row.adapter_version else None
    return BundleMember(row.position, row.name, adapter, row.weights_sha256, row.config_sha256)


def _add_verification(
    session: Session, row: models.BundleVersion, record: VerificationRecord, *, claimed_by: str | None = None
) -> None:
    if found := record.contradictions():
        raise BundleRefused(f"the record of `{source_of(row)}` is not what a verification writes: {found[0]}")
    row.verifications.append(
        models.Verification(
            level=record.level,
            outcome=record.outcome,
            record=record.seal().decode(),
            claimed_by=claimed_by,
        )
    )
    record_event(
        session,
        "verify" if claimed_by is None else "claim",
        models.BUNDLE,
        row.entry.name,
        row.number,
        level=str(record.level),
        outcome=str(record.outcome),
        **({} if claimed_by is None else {"claimed_by": clean_foreign_text(claimed_by)}),
    )


def _verification_record(row: models.Verification) -> Verification:
    record = read_record(row.record)
    is_from_here = row.claimed_by is None and not record.contradictions()
    return Verification(
        Level(row.level),
        Outcome(row.outcome),
        row.created_at,
        record,
        row.claimed_by,
        established=record.established if is_from_here else (),
    )
