"""The search's index: two tables with everything that filters, orders and words need.

Each change updates them in its own transaction; an import makes them again from the other tables.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Update,
    delete,
    except_,
    exists,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.orm import Session

from .models import (
    adapter_versions,
    base_models,
    entries,
    named_adapters,
    search_adapters,
    search_words,
    tags,
    versions,
)
from .query import words_of

_BATCH = 1000
# Of versions, by their ids.
Words = Mapping[int, Sequence[str]]


def index_version(session: Session, version_id: int, name: str) -> None:
    """Index a new version, which was flushed, as the latest of its name."""
    connection = session.connection()
    connection.execute(_update_last(name, is_latest=False))
    _insert(connection, version_id)


def index_removal(session: Session, name: str) -> None:
    """Mark the newest version that is left of a name as its latest."""
    session.connection().execute(_update_last(name, is_latest=True))


def index_restored(session: Session, version_id: int, name: str) -> None:
    """Index a version that was put back, which was flushed, and that may be older than others of its name."""
    connection = session.connection()
    _insert(connection, version_id)
    marked = (search_adapters.c.name == name, search_adapters.c.is_latest)
    connection.execute(update(search_adapters).where(*marked).values(is_latest=False))
    index_removal(session, name)


def index_rename(session: Session, previous: str, name: str) -> None:
    """Index the versions of a name under their new one."""
    renamed = update(search_adapters).where(search_adapters.c.name == previous).values(name=name)
    session.connection().execute(renamed)


def index_words(session: Session, version_id: int) -> None:
    """Replace the indexed words of an adapter version after texts or tags of it have changed."""
    connection = session.connection()
    connection.execute(delete(search_words).where(search_words.c.version_id == version_id))
    _insert_words(connection, version_id)


def rebuild_index(connection: Connection) -> None:
    """Make the whole index again, a thousand versions at a time."""
    connection.execute(delete(search_words))
    connection.execute(delete(search_adapters))
    connection.execute(search_adapters.insert().from_select(search_adapters.c.keys(), _rows()))
    for words in _all_words(connection):
        _add(connection, words)


def find_index_problems(connection: Connection) -> list[str]:
    """Return how the index differs from what the other tables imply."""
    missing, wrong = (
        connection.execute(select(func.count()).select_from(except_(first, second).subquery())).scalar_one()
        for first, second in ((_rows(), select(search_adapters)), (select(search_adapters), _rows()))
    )
    problems = []
    if missing or wrong:
        found = f"lacks {missing} adapter versions as they are, and has {wrong} as they are not"
        problems.append(f"the search's index {found}")
    if misspelt := sum(_count_wrong(connection, words) for words in _all_words(connection)):
        problems.append(f"the search's index has other words than theirs for {misspelt} adapter versions")
    return problems


def is_latest() -> ColumnElement[bool]:
    """Return the condition that a row of ``versions`` is the latest of its name."""
    newer = versions.alias()
    return ~exists().where(newer.c.entry_id == versions.c.entry_id, newer.c.number > versions.c.number)


def _update_last(name: str, *, is_latest: bool) -> Update:
    last = (
        select(search_adapters.c.version_id)
        .where(search_adapters.c.name == name)
        .order_by(search_adapters.c.number.desc())
        .limit(1)
    )
    return (
        update(search_adapters)
        .where(search_adapters.c.version_id == last.scalar_subquery())
        .values(is_latest=is_latest)
    )


def _insert(connection: Connection, version_id: int) -> None:
    row = _rows().where(adapter_versions.c.id == version_id)
    connection.execute(search_adapters.insert().from_select(search_adapters.c.keys(), row))
    _insert_words(connection, version_id)


def _insert_words(connection: Connection, version_id: int) -> None:
    _add(connection, _words(connection, _texts().where(adapter_versions.c.id == version_id)))


def _rows() -> Select[Any]:
    """Return the statement for the index's rows from the other tables, in the order of its columns."""
    return select(
        adapter_versions.c.id,
        entries.c.name,
        versions.c.number,
        is_latest(),
        adapter_versions.c.base_model_id,
        func.coalesce(adapter_versions.c.max_rank, literal(0)),
        adapter_versions.c.weights_bytes,
        adapter_versions.c.license,
        adapter_versions.c.sound,
        adapter_versions.c.fusable,
        versions.c.created_at,
    ).select_from(named_adapters)


def _texts() -> Select[Any]:
    """Return the statement for the texts that are searched, the name first."""
    return select(
        adapter_versions.c.id,
        entries.c.name,
        adapter_versions.c.origin_location,
        adapter_versions.c.stated_base,
        adapter_versions.c.declared_base,
        base_models.c.name,
        adapter_versions.c.license,
        adapter_versions.c.task_type,
        entries.c.owner,
        entries.c.note,
    ).select_from(named_adapters.outerjoin(base_models, base_models.c.id == adapter_versions.c.base_model_id))


def _all_words(connection: Connection) -> Iterator[Words]:
    """Yield the words of every version, a thousand versions at a time."""
    texts = _texts().order_by(adapter_versions.c.id).limit(_BATCH)
    last = 0
    while words := _words(connection, texts.where(adapter_versions.c.id > last)):
        yield words
        last = max(words)


def _words(connection: Connection, texts: Select[Any]) -> Words:
    found = connection.execute(texts).all()
    tags_of = _tags_of(connection, [version_id for version_id, *_ in found])
    return {
        version_id: words_of([name, *tags_of[version_id], *others]) for version_id, name, *others in found
    }


def _add(connection: Connection, words: Words) -> None:
    rows = [{"version_id": version_id, "word": word} for version_id, each in words.items() for word in each]
    connection.execute(insert(search_words), rows)


def _count_wrong(connection: Connection, words: Words) -> int:
    """Return for how many of these versions the index has other words."""
    indexed: defaultdict[int, set[str]] = defaultdict(set)
    query = select(search_words.c.version_id, search_words.c.word)
    for version_id, word in connection.execute(query.where(search_words.c.version_id.in_(words))):
        indexed[version_id].add(word)
    return sum(indexed[version_id] != set(each) for version_id, each in words.items())


def _tags_of(connection: Connection, version_ids: list[int]) -> defaultdict[int, list[str]]:
    tags_of: defaultdict[int, list[str]] = defaultdict(list)
    query = select(tags.c.version_id, tags.c.tag).order_by(tags.c.version_id, tags.c.tag)
    for version_id, tag in connection.execute(query.where(tags.c.version_id.in_(version_ids))):
        tags_of[version_id].append(tag)
    return tags_of
