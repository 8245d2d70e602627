"""The references of the catalog: blobs of the content store and folders of bundles, page by page.

A page is one short transaction, so that comparing a whole store with the catalog does not block writers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Row, select, tuple_
from sqlalchemy.orm import Session

from ...schemas.digest import Digest
from ...schemas.errors import MeteoraError
from ...schemas.manifest import Origin
from ...schemas.names import CatalogSource
from . import models
from .adapters import read_origin
from .engine import transaction
from .events import record_event
from .rows import damaged, read_trashed_row

_PAGE_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Reference:
    """A file of an adapter version, and where the version came from."""

    sha256: Digest
    size_bytes: int
    file_name: str
    version: CatalogSource
    origin: Origin
    in_trash: bool = False


@dataclass(frozen=True, slots=True)
class BundlePlace:
    """The place where a bundle version was last written, and the digests of each member's two files."""

    version: CatalogSource
    path: Path
    manifest_sha256: Digest
    size_bytes: int
    members: Mapping[str, frozenset[Digest]]


def identify(session: Session) -> Digest | None:
    """Return which catalog this is: the digest of its first event; None before there is one.

    It never changes. A catalog that was imported is known by the event of its import, because the catalog
    that was exported may still be in use, and would not know what this one adds.
    """
    first = select(models.Event).order_by(models.Event.id).limit(1)
    imported = select(models.Event).where(
        models.Event.name == models.CATALOG,
        models.Event.action == "import",
        models.Event.subject == models.CATALOG,
    )
    event = (
        session.scalars(imported.order_by(models.Event.id.desc()).limit(1)).one_or_none()
        or session.scalars(first).one_or_none()
    )
    return None if event is None else _digest_of(event)


def begin(session: Session) -> Digest:
    """Record the event by which a catalog without events is known from now on, and return its identity."""
    event = record_event(session, "begin", models.CATALOG, models.CATALOG)
    session.flush()
    # As the database holds it, to the precision of its clock.
    session.refresh(event)
    return _digest_of(event)


def _digest_of(event: models.Event) -> Digest:
    at = event.at.astimezone(UTC).isoformat(timespec="microseconds")
    return Digest.of_bytes("\n".join((at, event.actor, event.action, event.name)).encode())


def list_references(engine: Engine) -> Iterator[Reference]:
    """Yield every file of every adapter version, ordered by digest."""
    file, version = models.StoredFile, models.AdapterVersion
    key = tuple_(file.sha256, file.version_id, file.name)
    query = (
        select(file, version, models.Entry.name)
        .join(version, version.id == file.version_id)
        .join(models.Entry, models.Entry.id == version.entry_id)
        .order_by(file.sha256, file.version_id, file.name)
        .limit(_PAGE_ROWS)
    )
    last: tuple[object, ...] | None = None
    while True:
        with transaction(engine) as session:
            rows = session.execute(query.where(key > last) if last else query).all()
            page = [_reference(*row) for row in rows]
            last = (rows[-1][0].sha256, rows[-1][0].version_id, rows[-1][0].name) if rows else last
        yield from page
        if len(page) < _PAGE_ROWS:
            return


def list_trash_references(engine: Engine) -> Iterator[Reference]:
    """Yield every file of every adapter version in the trash, ordered by digest."""
    file, facts = models.trash_rows.alias(), models.trash_rows.alias()
    key = tuple_(file.c.sha256, file.c.trash_id, file.c.position)
    query = (
        select(file, models.trash.c.name, models.trash.c.number, facts.c.content.label("facts"))
        .join(models.trash, models.trash.c.id == file.c.trash_id)
        .join(facts, (facts.c.trash_id == file.c.trash_id) & (facts.c.of_table == "adapter_versions"))
        .where(file.c.sha256.is_not(None))
        .order_by(file.c.sha256, file.c.trash_id, file.c.position)
        .limit(_PAGE_ROWS)
    )
    last: tuple[object, ...] | None = None
    while True:
        with transaction(engine) as session:
            rows = session.execute(query.where(key > last) if last else query).all()
        yield from map(_trash_reference, rows)
        if len(rows) < _PAGE_ROWS:
            return
        last = (rows[-1].sha256, rows[-1].trash_id, rows[-1].position)


def _trash_reference(row: Row[Any]) -> Reference:
    source = CatalogSource(row.name, row.number)
    try:
        file = read_trashed_row("adapter_files", row.content, row.sha256)
        facts = read_trashed_row("adapter_versions", row.facts, None)
        origin = read_origin(facts["origin_kind"], facts["origin_location"], facts["origin_commit"])
    except (ValueError, MeteoraError) as error:
        raise damaged(source, error) from error
    return Reference(row.sha256, file["size_bytes"], file["name"], source, origin, in_trash=True)


def list_bundle_places(engine: Engine) -> Iterator[BundlePlace]:
    """Yield every bundle version, the oldest first."""
    bundle = models.BundleVersion
    query = select(bundle).order_by(bundle.id).limit(_PAGE_ROWS)
    last = 0
    while True:
        with transaction(engine) as session:
            rows = session.scalars(query.where(bundle.id > last)).all()
            page = [_bundle_place(row) for row in rows]
            last = rows[-1].id if rows else last
        yield from page
        if len(page) < _PAGE_ROWS:
            return


def _reference(file: models.StoredFile, version: models.AdapterVersion, name: str) -> Reference:
    return Reference(
        file.sha256,
        file.size_bytes,
        file.name,
        CatalogSource(name, version.number),
        read_origin(version.origin_kind, version.origin_location, version.origin_commit),
    )


def _bundle_place(row: models.BundleVersion) -> BundlePlace:
    members = {each.name: frozenset({each.weights_sha256, each.config_sha256}) for each in row.members}
    return BundlePlace(
        CatalogSource(row.entry.name, row.number),
        Path(row.path),
        row.facts.manifest_sha256,
        row.facts.size_bytes,
        members,
    )
