"""The search's index: kept in the transaction of each change, and made again from the other tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, except_, func, insert, literal, select
from sqlalchemy.orm import Session

from .models import AdapterVersion, Base, BaseModel, SearchRow, SearchWord, Tag
from .words import words_of

_BATCH = 1000

# The tables themselves: through the models every version would be an object first.
_entries, _versions = Base.metadata.tables["entries"], Base.metadata.tables["versions"]
_adapters, _bases = (
    Base.metadata.tables[AdapterVersion.__tablename__],
    Base.metadata.tables[BaseModel.__tablename__],
)
_search, _words = (
    Base.metadata.tables[SearchRow.__tablename__],
    Base.metadata.tables[SearchWord.__tablename__],
)
_tags = Base.metadata.tables[Tag.__tablename__]
_named = _adapters.join(_versions, _versions.c.id == _adapters.c.id).join(
    _entries, _entries.c.id == _versions.c.entry_id
)


def index_version(session: Session, version_id: int) -> None:
    """Make a version that was flushed findable."""
    connection = session.connection()
    connection.execute(
        _search.insert().from_select(_search.c.keys(), _rows().where(_adapters.c.id == version_id))
    )
    _add_words(connection, _texts().where(_adapters.c.id == version_id))


def index_tags(session: Session, version_id: int) -> None:
    """Make an adapter version findable by the tags that it has now, and no more by those that it had."""
    connection = session.connection()
    connection.execute(delete(_words).where(_words.c.version_id == version_id))
    _add_words(connection, _texts().where(_adapters.c.id == version_id))


def rebuild_index(connection: Connection) -> None:
    """Make the whole index again; memory: a thousand versions at a time."""
    connection.execute(delete(_words))
    connection.execute(delete(_search))
    connection.execute(_search.insert().from_select(_search.c.keys(), _rows()))
    last = 0
    while True:
        batch = _texts().where(_adapters.c.id > last).order_by(_adapters.c.id).limit(_BATCH)
        found = _add_words(connection, batch)
        if found is None:
            return
        last = found


def find_index_problems(connection: Connection) -> list[str]:
    """What the index says of adapters that the other tables do not, and the other way round."""
    missing, wrong = (
        connection.execute(select(func.count()).select_from(except_(first, second).subquery())).scalar_one()
        for first, second in ((_rows(), select(_search)), (select(_search), _rows()))
    )
    if not missing and not wrong:
        return []
    return [
        f"the search's index lacks {missing} adapter versions as they are, and has {wrong} as they are not"
    ]


def _rows() -> Select[Any]:
    """The index's rows as they follow from the other tables, in the order of its columns."""
    return select(
        _adapters.c.id,
        _entries.c.name,
        _versions.c.number,
        _adapters.c.base_model_id,
        func.coalesce(_adapters.c.max_rank, literal(0)),
        _adapters.c.weights_bytes,
        _adapters.c.license,
        _adapters.c.sound,
        _adapters.c.fusable,
        _versions.c.created_at,
    ).select_from(_named)


def _texts() -> Select[Any]:
    """The texts that are searched, of which the name stands first."""
    return select(
        _adapters.c.id,
        _entries.c.name,
        _adapters.c.origin_location,
        _adapters.c.stated_base,
        _adapters.c.declared_base,
        _bases.c.name,
        _adapters.c.license,
        _adapters.c.task_type,
    ).select_from(_named.outerjoin(_bases, _bases.c.id == _adapters.c.base_model_id))


def _add_words(connection: Connection, texts: Select[Any]) -> int | None:
    """The last version of which words were added; None if there was none."""
    versions = connection.execute(texts).all()
    if not versions:
        return None
    tags = _tags_of(connection, versions)
    rows = [
        {"version_id": version_id, "word": word}
        for version_id, name, *others in versions
        for word in words_of([name, *tags[version_id], *others])
    ]
    connection.execute(insert(_words), rows)
    return int(versions[-1][0])


def _tags_of(connection: Connection, versions: Iterable[Row[Any]]) -> defaultdict[int, list[str]]:
    tags: defaultdict[int, list[str]] = defaultdict(list)
    query = select(_tags.c.version_id, _tags.c.tag).order_by(_tags.c.version_id, _tags.c.tag)
    for version_id, tag in connection.execute(
        query.where(_tags.c.version_id.in_([each[0] for each in versions]))
    ):
        tags[version_id].append(tag)
    return tags
