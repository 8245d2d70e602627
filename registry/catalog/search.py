"""Search: which adapter versions meet a query, a page at a time.

A page costs about the same however large the catalog is, because few versions are looked at one by one.
Every condition that has an index is asked how many versions meet it. If one has few, they are the
candidates. If not, answers are frequent, and the next rows in the order that was asked for are candidates:
for one stretch, for answers may be frequent and all lie elsewhere. If these do not fill the page, they say
how many rows would. If that is more than the rarest condition's versions, these are the candidates, or
what they share with the second rarest's. The databases are told so much, for left to themselves they
guess, from statistics that a growing catalog does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, literal, select, tuple_
from sqlalchemy import Row as Answer
from sqlalchemy.orm import InstrumentedAttribute, Session

from . import models
from .bases import find_base_id
from .columns import Among, Unindexed
from .cursor import Key, decode_cursor, encode_cursor, not_a_cursor
from .models import SearchRow as Row
from .query import AdapterQuery, Order, Page
from .records import AdapterSummary
from .summaries import read_summaries

# How many candidates are few; the rows of a stretch for each answer on a page; how far anything is counted.
_FEW = 3000
_STRETCH = 20
_MANY = 20_000
Column = InstrumentedAttribute[Any] | Unindexed
# After every word that begins with a prefix, in the order of code points.
_LAST_CHARACTER = "\U0010ffff"

_KEYS: dict[Order, tuple[InstrumentedAttribute[Any], InstrumentedAttribute[int]]] = {
    Order.NAME: (Row.name, Row.number),
    Order.DATE: (Row.added_at, Row.version_id),
    Order.SIZE: (Row.weights_bytes, Row.version_id),
    Order.RANK: (Row.max_rank, Row.version_id),
}


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition that has an index: the versions that it finds, and the same asked of one row."""

    versions: Select[int]
    of_row: ColumnElement[bool]


def search(session: Session, query: AdapterQuery) -> Page[AdapterSummary]:
    """One page of the versions that meet the query.

    Raises:
        UsageError: the cursor is none of this query's.
    """
    base_id = None
    if query.base is not None:
        base_id = find_base_id(session, query.base)
        if base_id is None:
            return Page((), None)
    found = _find(session, query, base_id)
    rows = found[: query.limit]
    following = _cursor_after(query, rows[-1][1:]) if len(found) > query.limit else None
    summaries = read_summaries(session, [row.version_id for row in rows]) if rows else {}
    return Page(tuple(summaries[row.version_id] for row in rows), following)


def _find(session: Session, query: AdapterQuery, base_id: int | None) -> Sequence[Answer[Any]]:
    """The page's versions with their sort keys, and one more if there is a next page."""
    filters = list(_filters(query, base_id))
    wanted = query.limit + 1
    if not filters:
        page = select(Row.version_id, *_KEYS[query.order]).where(*_unindexed(query), *_after(query))
        return session.execute(page.order_by(*_order(query)).limit(wanted)).all()
    (fewest, rarest), *_ = _counted(session, filters, _FEW + 1)
    if fewest <= _FEW:
        others = [each for each in filters if each is not rarest]
        return session.execute(_page(query, others, rarest.versions)).all()
    stretch = _STRETCH * wanted
    found = session.execute(_page(query, filters, _next_rows(query, stretch))).all()
    if len(found) == wanted:
        return found
    counted = _counted(session, filters, _MANY)
    # Twice what the page would take if answers lay everywhere as thick as there.
    rows = 2 * wanted * stretch // max(len(found), 1)
    if rows < counted[0][0]:
        found = session.execute(_page(query, filters, _next_rows(query, rows))).all()
        if len(found) == wanted:
            return found
    return _look_at_all(session, query, counted)


def _counted(session: Session, filters: Sequence[Filter], limit: int) -> list[tuple[int, Filter]]:
    """How many versions meet each condition, counted to a limit; the rarest first."""
    postings = (each.versions.limit(limit).subquery() for each in filters)
    counts = select(*(select(func.count()).select_from(each).scalar_subquery() for each in postings))
    return sorted(zip(session.execute(counts).one(), filters, strict=True), key=lambda each: each[0])


def _look_at_all(
    session: Session, query: AdapterQuery, counted: Sequence[tuple[int, Filter]]
) -> Sequence[Answer[Any]]:
    """The page among all versions that the rarest condition finds."""
    rarest, *others = (each for _, each in counted)
    candidates = rarest.versions
    if others and counted[1][0] < _MANY:
        # What the two share is found in their indexes alone.
        second, *others = others
        candidates = candidates.where(candidates.selected_columns[0].in_(second.versions))
    elif others:
        # What very many meet, the first of them in the wanted order may well meet, and fill the page.
        first = _first_of(query, candidates, 4 * (query.limit + 1))
        found = session.execute(_page(query, others, first)).all()
        if len(found) > query.limit:
            return found
    return session.execute(_page(query, others, candidates)).all()


def _next_rows(query: AdapterQuery, rows: int) -> Select[int]:
    return select(Row.version_id).where(*_after(query)).order_by(*_order(query)).limit(rows)


def _first_of(query: AdapterQuery, candidates: Select[int], rows: int) -> Select[int]:
    among = (Among(Row.version_id, candidates), *_unindexed(query), *_after(query))
    return select(Row.version_id).where(*among).order_by(*_order(query)).limit(rows)


def _page(query: AdapterQuery, filters: Sequence[Filter], candidates: Select[int]) -> Select[Any]:
    """The page's answers among some candidates; none is looked at but these."""
    return (
        select(Row.version_id, *_KEYS[query.order])
        .where(Among(Row.version_id, candidates), *(each.of_row for each in filters))
        .where(*_unindexed(query), *_after(query))
        .order_by(*_order(query))
        .limit(query.limit + 1)
    )


def _filters(query: AdapterQuery, base_id: int | None) -> Iterator[Filter]:
    """The conditions that have an index, the likely rare ones first."""
    for tag in query.tags:
        yield _linked(models.Tag.version_id, models.Tag.tag == tag)
    for word in query.words:
        yield _linked(models.SearchWord.version_id, _begins_with(word))
    if base_id is not None:
        # One index has it all.
        yield _own(
            lambda of: [of(Row.base_model_id) == base_id, *_latest(query), *_ranks(query, of(Row.max_rank))]
        )
    if query.license is not None:
        yield _own(lambda of: [of(Row.license) == query.license])
    for kind in query.targets:
        yield _linked(models.Target.version_id, models.Target.kind == kind)
    if base_id is None and (query.min_rank is not None or query.max_rank is not None):
        yield _own(lambda of: _ranks(query, of(Row.max_rank)))
    if query.min_bytes is not None or query.max_bytes is not None:
        yield _own(lambda of: _sizes(query, of(Row.weights_bytes)))
    if query.added_from is not None or query.added_before is not None:
        yield _own(lambda of: _dates(query, of(Row.added_at)))


def _linked(version_id: InstrumentedAttribute[int], condition: ColumnElement[bool]) -> Filter:
    """What another table says of a version."""
    versions = select(version_id).where(condition)
    return Filter(versions, versions.where(version_id == Row.version_id).exists())


def _own(conditions: Callable[[Callable[[Any], Any]], Iterable[ColumnElement[bool]]]) -> Filter:
    """What the row itself says; ``conditions`` of its columns, as each is to be read."""
    return Filter(
        select(Row.version_id).where(*conditions(lambda column: column)), and_(*conditions(Unindexed))
    )


def _unindexed(query: AdapterQuery) -> Iterator[ColumnElement[bool]]:
    if query.sound is not None:
        yield Row.sound.is_(query.sound)
    if query.fusable is not None:
        yield Row.fusable.is_(query.fusable)
    yield from _latest(query)


def _latest(query: AdapterQuery) -> Iterator[ColumnElement[bool]]:
    if not query.all_versions:
        yield Row.is_latest.is_(True)


def _order(query: AdapterQuery) -> Iterator[ColumnElement[Any]]:
    return (column.desc() if query.descending else column.asc() for column in _KEYS[query.order])


def _after(query: AdapterQuery) -> Iterator[ColumnElement[bool]]:
    if query.after is not None:
        yield _beyond(query, _place_of(query, query.after))


def _beyond(query: AdapterQuery, key: Key) -> ColumnElement[bool]:
    columns = _KEYS[query.order]
    place = tuple_(*(literal(value, column.type) for value, column in zip(key, columns, strict=True)))
    return tuple_(*columns) < place if query.descending else tuple_(*columns) > place


def _ranks(query: AdapterQuery, rank: Column) -> Iterator[ColumnElement[bool]]:
    if query.min_rank is not None or query.max_rank is not None:
        # A rank of 0 stands for no LoRA factors at all.
        yield rank >= max(query.min_rank or 1, 1)
    if query.max_rank is not None:
        yield rank <= query.max_rank


def _sizes(query: AdapterQuery, size: Column) -> Iterator[ColumnElement[bool]]:
    if query.min_bytes is not None:
        yield size >= query.min_bytes
    if query.max_bytes is not None:
        yield size <= query.max_bytes


def _dates(query: AdapterQuery, date: Column) -> Iterator[ColumnElement[bool]]:
    if query.added_from is not None:
        yield date >= query.added_from
    if query.added_before is not None:
        yield date < query.added_before


def _begins_with(prefix: str) -> ColumnElement[bool]:
    word = models.SearchWord.word
    return and_(word >= prefix, word < prefix + _LAST_CHARACTER)


def _cursor_after(query: AdapterQuery, key: Sequence[Any]) -> str:
    values = (value.isoformat() if isinstance(value, datetime) else value for value in key)
    return encode_cursor(query.question, tuple(values))


def _place_of(query: AdapterQuery, cursor: str) -> Key:
    is_text = query.order in (Order.NAME, Order.DATE)
    first, second = decode_cursor(cursor, query.question, (str if is_text else int, int))
    if query.order is Order.DATE:
        try:
            return datetime.fromisoformat(str(first)), second
        except ValueError as error:
            raise not_a_cursor(cursor) from error
    return first, second
