"""Search: which adapter versions meet a query, a page at a time.

A page costs about the same however large the catalog is, because it is worked out in the shorter of two
ways. Every condition that has an index is asked how many versions meet it. If one has few, they are all
looked at, and the answers sorted. If not, answers are frequent, and the rows are walked in the order that
was asked for until the page is full: for one stretch, for they may be frequent and all lie elsewhere.
Then the condition with the fewest leads after all. Left to themselves the databases guess, from statistics
that a growing catalog does not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, func, literal, select, tuple_
from sqlalchemy import Row as Answer
from sqlalchemy.orm import InstrumentedAttribute, Session

from . import models
from .bases import find_base_id
from .columns import Unindexed
from .cursor import Key, decode_cursor, encode_cursor, not_a_cursor
from .models import SearchRow as Row
from .query import AdapterQuery, Order, Page
from .records import AdapterSummary
from .summaries import read_summaries

# How many versions are looked at rather than walk; how many rows are walked; how far anything is counted.
_FEW = 2000
_STRETCH = 2000
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
    page = _page(query, base_id)
    counted = [(_count(session, posting), posting) for posting in _postings(query, base_id)]
    fewest, leading = min(counted, key=lambda each: each[0], default=(0, None))
    if leading is None:
        return session.execute(page).all()
    if fewest > _FEW:
        end = _end_of_stretch(session, query)
        found = session.execute(page if end is None else page.where(~_beyond(query, end))).all()
        if end is None or len(found) > query.limit:
            return found
    return session.execute(page.where(Row.version_id.in_(leading))).all()


def _count(session: Session, posting: Select[int]) -> int:
    return session.scalar(select(func.count()).select_from(posting.limit(_MANY).subquery())) or 0


def _end_of_stretch(session: Session, query: AdapterQuery) -> Key | None:
    """The sort key of the last row of the stretch; None if there are not so many rows."""
    rows = select(*_KEYS[query.order]).where(*_after(query)).order_by(*_order(query))
    row = session.execute(rows.offset(_STRETCH).limit(1)).one_or_none()
    return tuple(row) if row else None


def _postings(query: AdapterQuery, base_id: int | None) -> Iterator[Select[int]]:
    """What finds the versions of each condition that has an index, the likely rare ones first."""
    for tag in query.tags:
        yield select(models.Tag.version_id).where(models.Tag.tag == tag)
    for word in query.words:
        yield select(models.SearchWord.version_id).where(_begins_with(word))
    ranks = list(_ranks(query, Row.max_rank))
    if base_id is not None:
        yield select(Row.version_id).where(Row.base_model_id == base_id, *ranks)
    if query.license is not None:
        yield select(Row.version_id).where(Row.license == query.license)
    for kind in query.targets:
        yield select(models.Target.version_id).where(models.Target.kind == kind)
    sizes, dates = list(_sizes(query, Row.weights_bytes)), list(_dates(query, Row.added_at))
    # The base's own versions of these ranks have been asked for already.
    for conditions in (ranks if base_id is None else [], sizes, dates):
        if conditions:
            yield select(Row.version_id).where(*conditions)


def _page(query: AdapterQuery, base_id: int | None) -> Select[Any]:
    return (
        select(Row.version_id, *_KEYS[query.order])
        .where(*_conditions(query, base_id), *_after(query))
        .order_by(*_order(query))
        .limit(query.limit + 1)
    )


def _order(query: AdapterQuery) -> Iterator[ColumnElement[Any]]:
    return (column.desc() if query.descending else column.asc() for column in _KEYS[query.order])


def _after(query: AdapterQuery) -> Iterator[ColumnElement[bool]]:
    if query.after is not None:
        yield _beyond(query, _place_of(query, query.after))


def _beyond(query: AdapterQuery, key: Key) -> ColumnElement[bool]:
    columns = _KEYS[query.order]
    place = tuple_(*(literal(value, column.type) for value, column in zip(key, columns, strict=True)))
    return tuple_(*columns) < place if query.descending else tuple_(*columns) > place


def _conditions(query: AdapterQuery, base_id: int | None) -> Iterator[ColumnElement[bool]]:
    if base_id is not None:
        yield Unindexed(Row.base_model_id) == base_id
    if query.license is not None:
        yield Unindexed(Row.license) == query.license
    if query.sound is not None:
        yield Row.sound.is_(query.sound)
    if query.fusable is not None:
        yield Row.fusable.is_(query.fusable)
    yield from _ranks(query, Unindexed(Row.max_rank))
    yield from _sizes(query, Unindexed(Row.weights_bytes))
    yield from _dates(query, Unindexed(Row.added_at))
    for kind in query.targets:
        yield exists().where(models.Target.version_id == Row.version_id, models.Target.kind == kind)
    for tag in query.tags:
        yield exists().where(models.Tag.version_id == Row.version_id, models.Tag.tag == tag)
    for word in query.words:
        yield exists().where(models.SearchWord.version_id == Row.version_id, _begins_with(word))
    if not query.all_versions:
        yield Row.is_latest.is_(True)


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
