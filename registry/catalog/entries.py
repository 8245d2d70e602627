"""Names, versions, tags and aliases: what adapters and bundles have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import TypeVar, cast

from sqlalchemy import delete, select, union
from sqlalchemy.orm import Session

from ...schemas.digest import Digest
from ...schemas.errors import AlreadyInCatalog, NotInCatalog
from ...schemas.names import CatalogSource, check_alias, check_entry, check_name
from . import models
from .events import record_event
from .records import Kind
from .search_index import index_words

VersionModel = TypeVar("VersionModel", bound=models.Version)
_SHOWN_CHOICES = 20
# A misspelled name is compared with so many that begin with its first letter.
_COMPARED_NAMES = 2000


def find_entry(session: Session, name: str) -> models.Entry | None:
    """Return the entry of that name, with or without versions; None if there is none."""
    return session.scalars(select(models.Entry).where(models.Entry.name == name)).one_or_none()


def list_numbers(session: Session, name: str) -> tuple[int, ...]:
    """Return the numbers of the versions of that name, in order; () for an unknown name."""
    numbers = select(models.Version.number).join(models.Version.entry).where(models.Entry.name == name)
    return tuple(session.scalars(numbers.order_by(models.Version.number)))


def list_names(session: Session, beginning: str, *, limit: int) -> tuple[str, ...]:
    """Return the names that have a version and begin so, in order."""
    names = select(models.Entry.name).where(
        models.Entry.name.startswith(beginning, autoescape=True),
        select(models.Version.id).where(models.Version.entry_id == models.Entry.id).exists(),
    )
    return tuple(session.scalars(names.order_by(models.Entry.name).limit(limit)))


def taken(entry: models.Entry, *, hint: str) -> AlreadyInCatalog:
    """Return the error for a name that something has."""
    return AlreadyInCatalog(f"the name `{entry.name}` is taken by {_article(entry.kind)}", hint=hint)


def _similar_names(session: Session, name: str) -> str:
    similar = " or ".join(f"`{each}`" for each in _resembling(session, name))
    return f"did you mean {similar}?" if similar else "see what there is with `meteora-registry list`"


def _way_to_restore(session: Session, source: CatalogSource) -> str | None:
    """Return the hint about what was removed under that name, or that version of it."""
    found = select(models.Trashed.id).where(models.Trashed.name == source.name)
    if source.version is not None:
        found = found.where(models.Trashed.number == source.version)
    if session.scalars(found.limit(1)).first() is None:
        return None
    wanted = CatalogSource(source.name, source.version)
    return f"it is in the trash: `meteora-registry restore {wanted}` brings it back"


def _resembling(session: Session, name: str) -> list[str]:
    """Return up to three names that are spelled like this one, the most similar first."""
    return get_close_matches(name, list_names(session, name[:1], limit=_COMPARED_NAMES))


def begin_version(session: Session, name: str, kind: Kind) -> tuple[models.Entry, int]:
    """Return the entry, made if it is new, and the number of its next version.

    Raises:
        UsageError: the name is malformed.
        AlreadyInCatalog: the name is one of the other kind.
    """
    entry = find_entry(session, check_entry(name) if kind == models.ADAPTER else check_name(name))
    if entry is None:
        entry = models.Entry(name=name, kind=kind, latest_version=0)
        session.add(entry)
    elif entry.kind != kind and find_latest(session, entry) is not None:
        raise taken(entry, hint="choose another name")
    entry.kind = kind
    entry.latest_version += 1
    return entry, entry.latest_version


def find_version(session: Session, source: CatalogSource, model: type[VersionModel]) -> VersionModel:
    """Return the version that ``source`` names: the latest, unless it selects one.

    Raises:
        NotInCatalog: nothing of that name, that version or that alias, or it is of the other kind.
    """
    expected = _kind_of(model)
    entry = find_entry(session, source.name)
    latest = find_latest(session, entry) if entry else None
    if entry is None or latest is None:
        raise NotInCatalog(
            f"the catalog has no {expected or 'adapter or bundle'} `{source.name}`",
            hint=_way_to_restore(session, source) or _similar_names(session, source.name),
        )
    if expected is not None and entry.kind != expected:
        raise NotInCatalog(f"`{source.name}` is {_article(entry.kind)}, expected {_article(expected)}")
    is_selected = source.version is not None or source.alias is not None
    return cast(VersionModel, _select_version(session, entry, source) if is_selected else latest)


def change_tags(
    session: Session, source: CatalogSource, *, add: Iterable[str], remove: Iterable[str]
) -> models.Version:
    """Change the tags of a version, where it does not have them so already, and return it."""
    version = find_version(session, source, models.Version)
    known = {tag.tag for tag in version.tags}
    added = sorted({check_name(tag, what="tag") for tag in add} - known)
    removed = sorted(known.intersection(remove))
    version.tags = [tag for tag in version.tags if tag.tag not in removed]
    version.tags += [models.Tag(tag=tag) for tag in added]
    if added or removed:
        record(session, "tags", version, added=added, removed=removed)
        session.flush()
        if version.kind == models.ADAPTER:
            index_words(session, version.id)
    return version


def set_alias(session: Session, source: CatalogSource, alias: str) -> models.Version:
    """Point an alias at a version and return the version; the alias may have pointed at another one."""
    version = find_version(session, source, models.Version)
    row = session.get(models.Alias, (version.entry_id, check_alias(alias)))
    previous = row.number if row else None
    if row is None:
        session.add(models.Alias(entry_id=version.entry_id, alias=alias, number=version.number))
    elif previous != version.number:
        row.number = version.number
    if previous != version.number:
        record(session, "alias", version, alias=alias, previous=previous)
    return version


def remove_alias(session: Session, name: str, alias: str) -> None:
    """Delete an alias.

    Raises:
        NotInCatalog: there is none.
    """
    version = find_version(session, CatalogSource(name, alias=alias), models.Version)
    session.execute(
        delete(models.Alias).where(models.Alias.entry_id == version.entry_id, models.Alias.alias == alias)
    )
    record(session, "alias", version, alias=alias, previous=version.number, removed=True)


def referenced_digests(session: Session, digests: Iterable[Digest]) -> set[Digest]:
    """Return those of ``digests`` that some adapter version refers to, in use or in the trash."""
    wanted = list(digests)
    columns = models.adapter_files.c.sha256, models.trash_rows.c.sha256
    # In one statement: between two, a version could move from the one table to the other.
    return set(session.scalars(union(*(select(column).where(column.in_(wanted)) for column in columns))))


def source_of(version: models.Version) -> CatalogSource:
    """Return the name of a version."""
    return CatalogSource(version.entry.name, version.number)


def find_latest(session: Session, entry: models.Entry) -> models.Version | None:
    """Return the latest version of an entry; None if all were removed."""
    return session.scalars(
        select(models.Version)
        .where(models.Version.entry_id == entry.id)
        .order_by(models.Version.number.desc())
        .limit(1)
    ).one_or_none()


def _select_version(session: Session, entry: models.Entry, source: CatalogSource) -> models.Version:
    query = select(models.Version).where(models.Version.entry_id == entry.id)
    if source.alias is not None:
        query = query.join(models.Version.aliases).where(models.Alias.alias == source.alias)
    else:
        query = query.where(models.Version.number == source.version)
    row = session.scalars(query).one_or_none()
    if row is None:
        raise _no_such(session, entry, source)
    return row


def _no_such(session: Session, entry: models.Entry, source: CatalogSource) -> NotInCatalog:
    if source.alias is not None:
        known = _choices([alias.alias for alias in entry.aliases])
        return NotInCatalog(f"`{entry.name}` has no alias `{source.alias}`{known}")
    known = _choices([str(version.number) for version in entry.versions])
    return NotInCatalog(
        f"`{entry.name}` has no version {source.version}{known}", hint=_way_to_restore(session, source)
    )


def _choices(known: Sequence[str]) -> str:
    if not known:
        return ", it has none"
    more = ", ..." if len(known) > _SHOWN_CHOICES else ""
    return f", it has {', '.join(f'`{each}`' for each in known[:_SHOWN_CHOICES])}{more}"


def record_push(session: Session, source: CatalogSource, details: Mapping[str, str]) -> None:
    """Add the event that a version was published.

    Raises:
        NotInCatalog: there is none.
    """
    record(session, "push", find_version(session, source, models.Version), **details)


def record(session: Session, action: str, version: models.Version, **details: object) -> None:
    """Add an event of a version."""
    record_event(session, action, version.kind, version.entry.name, version.number, **details)


def _kind_of(model: type[models.Version]) -> Kind | None:
    kinds: dict[type[models.Version], Kind] = {
        models.AdapterVersion: models.ADAPTER,
        models.BundleVersion: models.BUNDLE,
    }
    return kinds.get(model)


def _article(kind: str) -> str:
    return "an adapter" if kind == models.ADAPTER else "a bundle"
