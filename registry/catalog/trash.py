"""The trash: versions that were removed, each kept whole until it expires, restored from there, or deleted.

A removed version is in no table but ``trash`` and ``trash_rows``, which has its rows as an export would. So
its name is free again, and no statement over versions ever meets it. Its files in the content store stay
referred to (``entries.referenced_digests``). It is put back with other row numbers, under the same name and
version number: a name never gives a number away twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from sqlalchemy import Connection, Select, Table, and_, delete, insert, select
from sqlalchemy.orm import Session

from ...schemas.digest import Digest
from ...schemas.errors import (
    AlreadyInCatalog,
    CatalogUnusable,
    MeteoraError,
    NotInCatalog,
    StillInUse,
    UsageError,
)
from ...schemas.names import CatalogSource, check_name, parse_catalog_source
from ..store.marks import batches
from . import models
from .chain import CONTENT
from .entries import find_entry, find_latest, find_version, record, source_of, taken
from .events import PREVIOUS, current_actor, record_event
from .models import adapter_versions, aliases, bundle_versions, trash, trash_rows, versions
from .records import Kind, Removal, Restored, TrashedVersion, join_sources
from .rows import ENTRIES, MEMBER, VERSION_TABLES, Row, damaged, read_trashed_row, write_trashed_row
from .search_index import index_removal, index_restored

# The column of each table with the version that a row belongs to; the others name it `version_id`.
_OWNER_COLUMNS = {
    "versions": "id",
    "adapter_versions": "id",
    "bundle_versions": "id",
    "bundle_members": "bundle_version_id",
    "verifications": "bundle_version_id",
}
_FACTS = {models.ADAPTER: adapter_versions, models.BUNDLE: bundle_versions}


def remove(session: Session, source: CatalogSource, *, keep: timedelta | None) -> Removal:
    """Remove the version that ``source`` selects, or all of the name; raise as ``Catalog.remove``."""
    trashed = [] if keep is not None else _find_trashed(session, source)
    try:
        removal = _remove_versions(session, source, keep)
    except NotInCatalog:
        if not trashed:
            raise
        removal = Removal(cast(Kind, trashed[0].kind), (), frozenset(), None)
    if not trashed:
        return removal
    digests = _delete(session, trashed)
    removed = dict.fromkeys((*removal.versions, *map(_source_of, trashed)))
    return Removal(removal.kind, tuple(removed), removal.digests | digests, None)


def _remove_versions(session: Session, source: CatalogSource, keep: timedelta | None) -> Removal:
    version = find_version(session, source, models.Version)
    entry, is_selected = version.entry, source.version is not None or source.alias is not None
    chosen = [version] if is_selected else list(entry.versions)
    wanted = versions.c.id == version.id if is_selected else versions.c.entry_id == entry.id
    # A statement: a database takes only so many values in one, and a name may have more versions.
    identifiers = select(versions.c.id).where(wanted)
    _check_unused(session, chosen, identifiers)
    digests = session.scalars(
        select(models.StoredFile.sha256).where(models.StoredFile.version_id.in_(identifiers))
    )
    is_last = len(chosen) == len(entry.versions)
    sources = tuple(map(source_of, chosen))
    now = datetime.now(UTC)
    expires_at = None if keep is None else now + keep
    removal = Removal(cast(Kind, version.kind), sources, frozenset(digests), expires_at)
    for each in chosen:
        if expires_at is not None:
            _keep(session, each, now, expires_at, states=is_last)
        record(session, "remove", each, **({} if keep is None else {"kept_days": keep.days}))
    session.flush()
    # The database removes the rows that refer to them.
    session.execute(delete(versions).where(wanted))
    if is_last:
        # They were stated about what is gone; whatever gets the name is something else.
        entry.note = entry.owner = None
    if version.kind == models.ADAPTER:
        index_removal(session, source.name)
    return removal


def list_trash(session: Session) -> tuple[TrashedVersion, ...]:
    """Return what is in the trash, the last removed first."""
    rows = session.scalars(
        select(models.Trashed).order_by(models.Trashed.removed_at.desc(), trash.c.name, trash.c.number)
    )
    return tuple(
        TrashedVersion(
            cast(Kind, row.kind),
            row.name,
            row.number,
            row.size_bytes,
            row.removed_by,
            row.removed_at,
            row.expires_at,
        )
        for row in rows
    )


def find_expired(session: Session, at: datetime) -> Removal | None:
    """Return what has been in the trash for its time, and the digests that nothing else refers to then."""
    expired = _expired(session, at)
    if not expired:
        return None
    files = select(trash_rows.c.sha256).join(trash).where(trash_rows.c.sha256.is_not(None))
    in_use = select(models.StoredFile).where(models.StoredFile.sha256 == trash_rows.c.sha256)
    freed = files.where(
        trash.c.expires_at <= at,
        trash_rows.c.sha256.not_in(files.where(trash.c.expires_at > at)),
        ~in_use.exists(),
    )
    return _removal_of(expired, frozenset(session.scalars(freed)))


def purge(session: Session, at: datetime) -> Removal | None:
    """Delete what has been in the trash for its time; None if there is nothing."""
    expired = _expired(session, at)
    return _removal_of(expired, _delete(session, expired)) if expired else None


def restore(session: Session, source: CatalogSource, name: str | None) -> Restored:
    """Put back a removed version, or what the last removal of a name took; raise as ``Catalog.restore``."""
    if source.alias is not None:
        raise UsageError(
            f"`{source}` names an alias, and a removed version has none",
            hint=f"expected `{source.name}`, or a version as `meteora-registry trash` lists it",
        )
    if name is not None:
        check_name(name)
    found = _find_trashed(session, source)
    if not found:
        raise NotInCatalog(
            f"the trash has no `{source}`", hint="see what is there with `meteora-registry trash`"
        )
    if source.version is not None:
        found = found[-1:]
    last = max(row.removed_at for row in found)
    work = _Restoration(session)
    chosen = sorted((row for row in found if row.removed_at == last), key=lambda row: row.number)
    kind = cast(Kind, chosen[0].kind)
    restored = tuple(work.put_back(row, name) for row in chosen)
    return Restored(kind, restored, tuple(work.members), tuple(work.unlinked), tuple(work.aliases_elsewhere))


def find_trash_problems(connection: Connection) -> Iterator[str]:
    """Yield what is wrong with the trash: removed versions that could not be put back."""
    with Session(connection) as session:
        for row in session.scalars(select(models.Trashed).order_by(trash.c.id)):
            try:
                _read(row)
            except CatalogUnusable as error:
                yield str(error)


@dataclass
class _Restoration:
    """Removed versions on their way back, in one transaction.

    ``members`` are those that came back because a bundle has them as members; ``unlinked`` the members that
    the catalog no longer has; ``aliases_elsewhere`` the aliases that point at another version by now.
    """

    session: Session
    members: list[CatalogSource] = field(default_factory=list)
    unlinked: list[str] = field(default_factory=list)
    aliases_elsewhere: list[str] = field(default_factory=list)

    def put_back(self, row: models.Trashed, name: str | None) -> CatalogSource:
        """Put one version back, delete it from the trash, and return its name."""
        rows = _read(row)
        entry, number = self._begin(row, name)
        content = rows[_FACTS[row.kind].name][0]
        _check_is_new(self.session, entry, number, row.kind, content)
        version_id = self._insert(rows, row, entry, number)
        self._state(rows, entry)
        self._point_aliases(rows, entry, number)
        source, digest = CatalogSource(entry.name, number), content[CONTENT[row.kind]]
        record_event(
            self.session,
            "restore",
            row.kind,
            entry.name,
            number,
            **{CONTENT[row.kind]: str(digest)},
            **({PREVIOUS: str(_source_of(row))} if source != _source_of(row) else {}),
        )
        self.session.execute(delete(trash).where(trash.c.id == row.id))
        self.session.expire_all()
        if entry.kind == models.ADAPTER:
            index_restored(self.session, version_id, entry.name)
        return source

    def _begin(self, row: models.Trashed, name: str | None) -> tuple[models.Entry, int]:
        entry = find_entry(self.session, name or row.name)
        if entry is None:
            entry = models.Entry(name=name or row.name, kind=row.kind, latest_version=0)
            self.session.add(entry)
        elif entry.kind != row.kind and find_latest(self.session, entry) is not None:
            raise taken(entry, hint="restore it under another with `--as NEW`")
        entry.kind = row.kind
        number = row.number if name in (None, row.name) else entry.latest_version + 1
        entry.latest_version = max(entry.latest_version, number)
        self.session.flush()
        return entry, number

    def _insert(
        self, rows: dict[str, list[Row]], row: models.Trashed, entry: models.Entry, number: int
    ) -> int:
        connection = self.session.connection()
        (own,) = rows["versions"]
        numbered = own | {"entry_id": entry.id, "number": number}
        version_id = connection.scalar(insert(versions).values(numbered).returning(versions.c.id))
        for name in VERSION_TABLES:
            if name in ("versions", "aliases"):
                continue
            for values in rows[name]:
                numbers: dict[str, Any] = {_OWNER_COLUMNS.get(name, "version_id"): version_id}
                if name == "bundle_members":
                    numbers["adapter_version_id"] = self._find_member(values)
                stored = {key: value for key, value in values.items() if key != MEMBER}
                connection.execute(insert(_table(name)).values(stored | numbers))
        return cast(int, version_id)

    def _state(self, rows: dict[str, list[Row]], entry: models.Entry) -> None:
        """Put the note and the owner back, unless others were stated since."""
        for stated in rows[ENTRIES]:
            if entry.note is None and entry.owner is None:
                entry.note, entry.owner = stated["note"], stated["owner"]

    def _point_aliases(self, rows: dict[str, list[Row]], entry: models.Entry, number: int) -> None:
        for each in rows["aliases"]:
            if self.session.get(models.Alias, (entry.id, each["alias"])) is not None:
                self.aliases_elsewhere.append(f"{entry.name}@{each['alias']}")
                continue
            values = {"entry_id": entry.id, "alias": each["alias"], "number": number}
            self.session.connection().execute(insert(aliases).values(values))

    def _find_member(self, values: Row) -> int | None:
        """Return the adapter that is a bundle's member, brought back with it if that was removed, too."""
        if values[MEMBER] is None:
            return None
        named = parse_catalog_source(values[MEMBER])
        found = self._find_adapter(named, values)
        if found is None and (row := _find_trashed_adapter(self.session, named, values)) is not None:
            try:
                with self.session.begin_nested():
                    self.members.append(self.put_back(row, None))
            except AlreadyInCatalog:
                # Its name is taken, and `name` is for the bundle.
                pass
            found = self._find_adapter(named, values)
        if found is None:
            self.unlinked.append(values["name"])
        return found

    def _find_adapter(self, named: CatalogSource, values: Row) -> int | None:
        same = self.session.execute(
            select(adapter_versions.c.id, models.Entry.name, versions.c.number)
            .join(versions, versions.c.id == adapter_versions.c.id)
            .join(models.Entry, models.Entry.id == versions.c.entry_id)
            .where(
                adapter_versions.c.weights_sha256 == values["weights_sha256"],
                adapter_versions.c.config_sha256 == values["config_sha256"],
            )
            .order_by(adapter_versions.c.id)
        ).all()
        by_name = {CatalogSource(name, number): identifier for identifier, name, number in same}
        return by_name.get(named, same[0].id if same else None)


def _keep(
    session: Session, version: models.Version, now: datetime, expires_at: datetime, *, states: bool
) -> None:
    """Put a version into the trash; ``states`` if the note and the owner of its name go with it."""
    entry = version.entry
    kept: list[tuple[str, Row, Digest | None]] = []
    if states and (entry.note is not None or entry.owner is not None):
        kept.append((ENTRIES, {"note": entry.note, "owner": entry.owner}, None))
    size_bytes = 0
    for name in VERSION_TABLES:
        table = _table(name)
        for row in session.execute(_rows_of(table, version)).mappings():
            content, digest = write_trashed_row(table, row), None
            if name == "adapter_files":
                digest, size_bytes = row["sha256"], size_bytes + row["size_bytes"]
            if name == "bundle_members":
                member = row["adapter_version_id"]
                adapter = None if member is None else session.get(models.AdapterVersion, member)
                content[MEMBER] = None if adapter is None else str(source_of(adapter))
            kept.append((name, content, digest))
    session.add(
        models.Trashed(
            kind=version.kind,
            name=entry.name,
            number=version.number,
            size_bytes=size_bytes,
            removed_by=current_actor(),
            removed_at=now,
            expires_at=expires_at,
            rows=[
                models.TrashedRow(position=position, of_table=name, content=content, sha256=digest)
                for position, (name, content, digest) in enumerate(kept)
            ],
        )
    )


def _rows_of(table: Table, version: models.Version) -> Any:
    if table is aliases:
        return (
            select(table)
            .where(table.c.entry_id == version.entry_id, table.c.number == version.number)
            .order_by(table.c.alias)
        )
    column = table.c[_OWNER_COLUMNS.get(table.name, "version_id")]
    return select(table).where(column == version.id).order_by(*table.primary_key.columns)


def _read(row: models.Trashed) -> dict[str, list[Row]]:
    """Return the rows of a removed version by their tables, without numbers.

    Raises:
        CatalogUnusable: they are not those of a version.
    """
    found: dict[str, list[Row]] = {name: [] for name in (ENTRIES, *VERSION_TABLES)}
    try:
        for each in row.rows:
            read = read_trashed_row(each.of_table, each.content, each.sha256)
            if each.of_table == "bundle_members":
                read[MEMBER] = each.content.get(MEMBER)
            found[each.of_table].append(read)
        _check_has_facts(found, row.kind)
    except (ValueError, MeteoraError) as error:
        raise damaged(_source_of(row), error) from error
    return found


def _check_has_facts(found: dict[str, list[Row]], kind: str) -> None:
    for name in ("versions", _FACTS[kind].name):
        if len(found[name]) != 1:
            raise ValueError(f"it has {len(found[name])} rows of `{name}`, expected one")
    if found["versions"][0]["kind"] != kind:
        raise ValueError("it is of another kind")


def _check_is_new(session: Session, entry: models.Entry, number: int, kind: str, content: Row) -> None:
    """Refuse a second version with this content or this number.

    What is added again is the version that is there; a number is taken by one that was renamed to this name.
    """
    facts = _FACTS[kind]
    keys = ("weights_sha256", "canonical_config_sha256") if kind == models.ADAPTER else ("manifest_sha256",)
    own = select(versions.c.number).where(versions.c.entry_id == entry.id)
    same = own.join(facts, facts.c.id == versions.c.id).where(*(facts.c[key] == content[key] for key in keys))
    same_number = own.where(versions.c.number == number)
    if (there := session.scalars(same).first()) is not None:
        raise AlreadyInCatalog(
            f"`{CatalogSource(entry.name, there)}` has this very content",
            hint="there is nothing to restore; another name can be given with `--as NEW`",
        )
    if session.scalars(same_number).first() is not None:
        raise AlreadyInCatalog(
            f"`{CatalogSource(entry.name, number)}` is another version by now",
            hint="restore it under another name with `--as NEW`",
        )


def _check_unused(
    session: Session, chosen: Sequence[models.Version], identifiers: Select[tuple[int]]
) -> None:
    uses = session.execute(
        select(models.BundleMember.adapter_version_id, models.BundleVersion)
        .join(models.BundleVersion, models.BundleVersion.id == models.BundleMember.bundle_version_id)
        .where(models.BundleMember.adapter_version_id.in_(identifiers))
        .order_by(models.BundleVersion.id)
    ).all()
    if uses:
        used = {identifier for identifier, _ in uses}
        members = join_sources(source_of(version) for version in chosen if version.id in used)
        bundles = join_sources(dict.fromkeys(source_of(bundle) for _, bundle in uses))
        raise StillInUse(f"{members} cannot be removed: used by {bundles}", hint=f"remove {bundles} first")


def _find_trashed(session: Session, source: CatalogSource) -> list[models.Trashed]:
    """Return the removed versions of a name, or those with one number, the first removed first."""
    if source.alias is not None:
        return []
    query = select(models.Trashed).where(trash.c.name == source.name)
    if source.version is not None:
        query = query.where(trash.c.number == source.version)
    return list(session.scalars(query.order_by(trash.c.id)))


def _find_trashed_adapter(session: Session, named: CatalogSource, values: Row) -> models.Trashed | None:
    """Return the removed adapter with these files, if possible under that name, the last removed first."""
    files = [trash_rows.alias(), trash_rows.alias()]
    query = select(models.Trashed).where(trash.c.kind == models.ADAPTER)
    for file, key in zip(files, ("weights_sha256", "config_sha256"), strict=True):
        query = query.join(file, and_(file.c.trash_id == trash.c.id, file.c.sha256 == values[key]))
    found = session.scalars(query.order_by(trash.c.id.desc())).unique().all()
    return next((row for row in found if _source_of(row) == named), found[0] if found else None)


def _expired(session: Session, at: datetime) -> list[models.Trashed]:
    return list(session.scalars(select(models.Trashed).where(trash.c.expires_at <= at).order_by(trash.c.id)))


def _removal_of(rows: Sequence[models.Trashed], digests: frozenset[Digest]) -> Removal:
    return Removal(cast(Kind, rows[0].kind), tuple(map(_source_of, rows)), digests, None)


def _delete(session: Session, rows: Sequence[models.Trashed]) -> frozenset[Digest]:
    """Delete removed versions from the trash, and return the digests of their files."""
    found: set[Digest] = set()
    # A database takes only so many values in one statement.
    for batch in batches(rows):
        for row in batch:
            record_event(session, "purge", row.kind, row.name, row.number)
        identifiers = [row.id for row in batch]
        files = trash_rows.c.trash_id.in_(identifiers), trash_rows.c.sha256.is_not(None)
        found.update(session.scalars(select(trash_rows.c.sha256).where(*files)))
        session.execute(delete(trash).where(trash.c.id.in_(identifiers)))
    return frozenset(found)


def _source_of(row: models.Trashed) -> CatalogSource:
    return CatalogSource(row.name, row.number)


def _table(name: str) -> Table:
    return models.Base.metadata.tables[name]
