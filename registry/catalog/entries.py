"""Names, versions, tags and aliases: what adapters and bundles have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import TypeVar, cast

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from ...schemas.digest import Digest
from ...schemas.errors import AlreadyInCatalog, NotInCatalog, StillInUse
from ...schemas.names import CatalogSource, check_alias, check_entry, check_name
from . import models
from .events import record_event
from .records import Kind, Removal, join_sources
from .search_index import index_removal, index_tags

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
    elif entry.kind != kind and _latest(session, entry) is not None:
        raise AlreadyInCatalog(
            f"the name `{name}` is taken by {_article(entry.kind)}", hint="choose another name"
        )
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
    latest = _latest(session, entry) if entry else None
    if entry is None or latest is None:
        similar = " or ".join(f"`{each}`" for each in _resembling(session, source.name))
        raise NotInCatalog(
            f"the catalog has no {expected or 'adapter or bundle'} `{source.name}`",
            hint=f"did you mean {similar}?" if similar else "see what there is with `meteora-registry list`",
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
        _record(session, "tags", version, added=added, removed=removed)
        session.flush()
        if version.kind == models.ADAPTER:
            index_tags(session, version.id)
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
        _record(session, "alias", version, alias=alias, previous=previous)
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
    _record(session, "alias", version, alias=alias, previous=version.number, removed=True)


def remove(session: Session, source: CatalogSource) -> Removal:
    """Remove the version that ``source`` selects, or every version of the name.

    Raises:
        NotInCatalog: there is nothing of that name.
        StillInUse: a bundle has one of them as a member.
    """
    version = find_version(session, source, models.Version)
    is_selected = source.version is not None or source.alias is not None
    versions = [version] if is_selected else list(version.entry.versions)
    identifiers = [each.id for each in versions]
    _check_unused(session, versions)
    digests = session.scalars(
        select(models.StoredFile.sha256).where(models.StoredFile.version_id.in_(identifiers))
    )
    removal = Removal(cast(Kind, version.kind), tuple(map(source_of, versions)), frozenset(digests))
    for each in versions:
        _record(session, "remove", each)
    # The database removes the rows that refer to them.
    session.execute(
        delete(models.Version).where(models.Version.id.in_(identifiers)),
        execution_options={"synchronize_session": False},
    )
    if version.kind == models.ADAPTER:
        index_removal(session, source.name)
    return removal


def referenced_digests(session: Session, digests: Iterable[Digest]) -> set[Digest]:
    """Return those of ``digests`` that some adapter version refers to."""
    wanted = list(digests)
    return set(session.scalars(select(models.StoredFile.sha256).where(models.StoredFile.sha256.in_(wanted))))


def source_of(version: models.Version) -> CatalogSource:
    """Return the name of a version."""
    return CatalogSource(version.entry.name, version.number)


def _latest(session: Session, entry: models.Entry) -> models.Version | None:
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
        raise _no_such(entry, source)
    return row


def _no_such(entry: models.Entry, source: CatalogSource) -> NotInCatalog:
    if source.alias is not None:
        known = _choices([alias.alias for alias in entry.aliases])
        return NotInCatalog(f"`{entry.name}` has no alias `{source.alias}`{known}")
    known = _choices([str(version.number) for version in entry.versions])
    return NotInCatalog(f"`{entry.name}` has no version {source.version}{known}")


def _choices(known: Sequence[str]) -> str:
    if not known:
        return ", it has none"
    more = ", ..." if len(known) > _SHOWN_CHOICES else ""
    return f", it has {', '.join(f'`{each}`' for each in known[:_SHOWN_CHOICES])}{more}"


def _check_unused(session: Session, versions: Sequence[models.Version]) -> None:
    uses = session.execute(
        select(models.BundleMember.adapter_version_id, models.BundleVersion)
        .join(models.BundleVersion, models.BundleVersion.id == models.BundleMember.bundle_version_id)
        .where(models.BundleMember.adapter_version_id.in_([version.id for version in versions]))
        .order_by(models.BundleVersion.id)
    ).all()
    if uses:
        used = {identifier for identifier, _ in uses}
        members = join_sources(source_of(version) for version in versions if version.id in used)
        bundles = join_sources(dict.fromkeys(source_of(bundle) for _, bundle in uses))
        raise StillInUse(f"{members} cannot be removed: used by {bundles}", hint=f"remove {bundles} first")


def record_push(session: Session, source: CatalogSource, details: Mapping[str, str]) -> None:
    """Add the event that a version was published.

    Raises:
        NotInCatalog: there is none.
    """
    _record(session, "push", find_version(session, source, models.Version), **details)


def _record(session: Session, action: str, version: models.Version, **details: object) -> None:
    record_event(session, action, version.kind, version.entry.name, version.number, **details)


def _kind_of(model: type[models.Version]) -> Kind | None:
    kinds: dict[type[models.Version], Kind] = {
        models.AdapterVersion: models.ADAPTER,
        models.BundleVersion: models.BUNDLE,
    }
    return kinds.get(model)


def _article(kind: str) -> str:
    return "an adapter" if kind == models.ADAPTER else "a bundle"
