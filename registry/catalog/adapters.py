"""Adapter versions: added, and read as whole records or, with the statement of ``latest``, as summaries."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from sqlalchemy import bindparam, select, text
from sqlalchemy.orm import Session

from ...schemas.base_name import is_same_base
from ...schemas.digest import Digest
from ...schemas.errors import AlreadyInCatalog, NotInCatalog
from ...schemas.facts import values_of
from ...schemas.finding import Finding, Verdict
from ...schemas.manifest import Origin
from ...schemas.names import CatalogSource
from . import models
from .bases import resolve_base
from .column_types import clean_foreign_text
from .entries import begin_version, change_tags, source_of
from .events import record_event
from .latest import adapters_statement, read_adapter
from .models import adapter_versions
from .records import AdapterSummary, AdapterVersion, Added, NewAdapterVersion, StoredFile, Target
from .search_index import index_version


def add_adapter(session: Session, new: NewAdapterVersion, tags: Iterable[str]) -> Added:
    """Return the version with this content, new or already there, after adding the tags.

    Raises:
        UsageError: the name or a tag is malformed.
        AlreadyInCatalog: a bundle has the name, or the content is there with another stated base.
    """
    known = _find_content_of(session, new)
    row = known or _insert(session, new)
    session.flush()
    if known is None:
        index_version(session, row.id, new.name)
    wanted = tuple(tags)
    if wanted:
        change_tags(session, source_of(row), add=wanted, remove=())
        session.flush()
    # Read the record back from the database: foreign text may have been cut or cleaned.
    session.expire_all()
    return Added(adapter_record(row), created=known is None)


def find_from_hub(
    session: Session, repository: str, revision: str | None, folder: str | None
) -> models.AdapterVersion:
    """Return the latest version that was had from a repository on the Hub: at a commit, if one is named.

    Raises:
        NotInCatalog: there is none; what a bundle claims to be from there does not count.
    """
    end = f"/{folder}" if folder else ""
    rows = session.scalars(
        select(models.AdapterVersion)
        .where(
            adapter_versions.c.origin_kind == "hub",
            adapter_versions.c.origin_location.startswith(f"hf://{repository}@", autoescape=True),
            adapter_versions.c.claimed_by.is_(None),
        )
        .order_by(models.AdapterVersion.id.desc())
    )
    found = (
        each
        for each in rows
        if revision in (None, each.origin_commit)
        and each.origin_location == f"hf://{repository}@{each.origin_commit}{end}"
    )
    row = next(found, None)
    if row is None:
        at = f"@{revision}" if revision else ""
        raise NotInCatalog(
            f"the catalog has no adapter from `{repository}{at}{end}`",
            hint=f"add it first: `meteora-registry add {repository}{at}{end}`",
        )
    return row


def find_content(
    session: Session, weights_sha256: Digest, canonical_config_sha256: Digest
) -> tuple[CatalogSource, ...]:
    """Return every version with these weights and this config, of any name."""
    return tuple(source_of(row) for row in _rows_with(session, weights_sha256, canonical_config_sha256))


def find_claims(session: Session, weights_sha256: Digest, config_sha256: Digest) -> tuple[str | None, ...]:
    """Return for each version with these files which bundle it came out of, None if out of none."""
    found = session.scalars(
        select(adapter_versions.c.claimed_by)
        .where(
            adapter_versions.c.weights_sha256 == weights_sha256,
            adapter_versions.c.config_sha256 == config_sha256,
        )
        .order_by(adapter_versions.c.id)
    )
    return tuple(found)


def confirm_origin(
    session: Session, weights_sha256: Digest, config_sha256: Digest, location: str, license_name: str | None
) -> None:
    """Drop the claims of an origin for these files: they were fetched from there, and are the same.

    A claim stays where it names another licence than the one that was found there.
    """
    rows = session.scalars(
        select(models.AdapterVersion).where(
            adapter_versions.c.weights_sha256 == weights_sha256,
            adapter_versions.c.config_sha256 == config_sha256,
            adapter_versions.c.origin_location == clean_foreign_text(location),
            adapter_versions.c.claimed_by.is_not(None),
        )
    ).all()
    for row in rows:
        if row.facts.license not in (None, clean_foreign_text(license_name or "")):
            continue
        record_event(
            session,
            "confirm",
            models.ADAPTER,
            row.entry.name,
            row.number,
            origin=row.origin_location,
            claimed_by=row.claimed_by,
        )
        row.claimed_by = None


def adapter_record(row: models.AdapterVersion) -> AdapterVersion:
    """Return the record of a row."""
    return AdapterVersion(
        **values_of(row.facts),
        id=row.id,
        name=row.entry.name,
        version=row.number,
        origin=read_origin(row.origin_kind, row.origin_location, row.origin_commit),
        claimed_by=row.claimed_by,
        files=tuple(StoredFile(file.name, file.sha256, file.size_bytes) for file in row.files),
        stated_base=row.stated_base,
        base_model=row.base_model.name if row.base_model else None,
        targets=tuple(map(_target_record, row.targets)),
        verdict=Verdict(sound=row.sound, fusable=row.fusable),
        findings=tuple(Finding.from_value(finding, what="finding") for finding in row.findings),
        tags=tuple(tag.tag for tag in row.tags),
        aliases=tuple(alias.alias for alias in row.aliases),
        note=row.entry.note,
        owner=row.entry.owner,
        created_at=row.created_at,
    )


def _rows_with(
    session: Session, weights_sha256: Digest, canonical_config_sha256: Digest
) -> Iterable[models.AdapterVersion]:
    return session.scalars(
        select(models.AdapterVersion)
        .where(
            adapter_versions.c.weights_sha256 == weights_sha256,
            adapter_versions.c.canonical_config_sha256 == canonical_config_sha256,
        )
        .order_by(models.AdapterVersion.id)
    )


def _find_content_of(session: Session, new: NewAdapterVersion) -> models.AdapterVersion | None:
    same = _rows_with(session, new.facts.weights_sha256, new.facts.canonical_config_sha256)
    row = next((row for row in same if row.entry.name == new.name), None)
    if row is not None and new.stated_base is not None:
        stated = clean_foreign_text(new.stated_base)
        if row.stated_base is None or not is_same_base(stated, row.stated_base):
            found = f"with the base `{row.stated_base}`" if row.stated_base else "without a stated base"
            raise AlreadyInCatalog(
                f"`{source_of(row)}` has this very content, {found}, and a version never changes",
                hint=f"remove `{source_of(row)}` first, or state another name",
            )
    return row


def _insert(session: Session, new: NewAdapterVersion) -> models.AdapterVersion:
    entry, number = begin_version(session, new.name, models.ADAPTER)
    verdict = Verdict.of(new.findings)
    row = models.AdapterVersion(
        entry=entry,
        number=number,
        origin_kind=new.origin.kind,
        origin_location=new.origin.location,
        origin_commit=new.origin.commit,
        claimed_by=new.claimed_by,
        facts=new.facts,
        stated_base=new.stated_base,
        base_model=resolve_base(session, new.stated_base, new.facts.declared_base),
        sound=verdict.sound,
        fusable=verdict.fusable,
        findings=[finding.model_dump(mode="json") for finding in new.findings],
        files=[models.StoredFile(**dataclasses.asdict(file)) for file in new.files],
        targets=[models.Target(**dataclasses.asdict(target)) for target in new.targets],
    )
    session.add(row)
    claim = {} if new.claimed_by is None else {"claimed_by": clean_foreign_text(new.claimed_by)}
    record_event(
        session,
        "add",
        models.ADAPTER,
        new.name,
        number,
        weights_sha256=str(new.facts.weights_sha256),
        origin=clean_foreign_text(new.origin.location),
        **claim,
    )
    return row


def _target_record(row: models.Target) -> Target:
    return Target(**{field.name: getattr(row, field.name) for field in dataclasses.fields(Target)})


def read_origin(kind: str, location: str, commit: str | None) -> Origin:
    """Return the origin that three columns of an adapter version state.

    Raises:
        InvalidDocument: they do not state an origin.
    """
    return Origin.from_value({"kind": kind, "location": location, "commit": commit}, what="origin")


def read_summaries(session: Session, wanted: Sequence[int]) -> dict[int, AdapterSummary]:
    """Return the summaries by version id, ordered by name and number."""
    statement = text(adapters_statement(session.get_bind().dialect.name, "v.id IN :wanted"))
    rows = session.execute(statement.bindparams(bindparam("wanted", list(wanted), expanding=True)))
    return {row.id: read_adapter(row) for row in rows}
