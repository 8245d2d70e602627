"""Search: which adapter versions meet a query, a page at a time.

Each page costs about the same however large the catalog is, because it is worked out in one of two
ways. Every condition that has an index is asked first for its versions, at most ``_FEW`` of them: if
one has fewer, they are all looked at, and the answers sorted. If all have more, answers are frequent,
so the rows are walked in the order that was asked for until the page is full. Left to themselves the
databases guess which way is shorter, from statistics that a growing catalog does not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, literal, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from . import models
from .adapters import SUMMARY_OPTIONS, adapter_summary
from .bases import find_base_id
from .cursor import decode_cursor, encode_cursor, not_a_cursor
from .models import SearchRow as Row
from .query import AdapterQuery, Order, Page
from .records import AdapterSummary

_FEW = 1000
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
    found = session.execute(page_statement(query, base_id, _few_versions(session, query, base_id))).all()
    rows = found[: query.limit]
    following = _cursor_after(query, rows[-1][1:]) if len(found) > query.limit else None
    return Page(_summaries(session, [row.version_id for row in rows]), following)


def _few_versions(session: Session, query: AdapterQuery, base_id: int | None) -> list[int] | None:
    """All versions that meet one of the conditions, if one has few; None if every one has many."""
    for posting in postings(query, base_id):
        found = session.scalars(posting.limit(_FEW + 1)).all()
        if len(found) <= _FEW:
            return sorted(set(found))
    return None


def postings(query: AdapterQuery, base_id: int | None) -> Iterator[Select[int]]:
    """What finds the versions of each condition that has an index, the likely rare ones first."""
    for tag in query.tags:
        yield select(models.Tag.version_id).where(models.Tag.tag == tag)
    for word in query.words:
        yield select(models.SearchWord.version_id).where(_begins_with(word))
    ranks = list(_ranks(query))
    if base_id is not None:
        yield select(Row.version_id).where(Row.base_model_id == base_id, *ranks)
    if query.license is not None:
        yield select(Row.version_id).where(Row.license == query.license)
    for kind in query.targets:
        yield select(models.Target.version_id).where(models.Target.kind == kind)
    for conditions in (ranks, list(_sizes(query)), list(_dates(query))):
        if conditions:
            yield select(Row.version_id).where(*conditions)


def page_statement(query: AdapterQuery, base_id: int | None, few: Sequence[int] | None) -> Select[Any]:
    """What finds the page's versions with their sort keys, and one more if there is a next page."""
    key = _KEYS[query.order]
    statement = select(Row.version_id, *key).where(*_conditions(query, base_id))
    if query.after is not None:
        values = _place_of(query, query.after)
        place = tuple_(*(literal(value, column.type) for value, column in zip(values, key, strict=True)))
        statement = statement.where(tuple_(*key) < place if query.descending else tuple_(*key) > place)
    if few is not None:
        statement = statement.where(Row.version_id.in_(few)).with_hint(Row, "NOT INDEXED", "sqlite")
    else:
        names = "_".join(column.key for column in key)
        statement = statement.with_hint(Row, f"INDEXED BY ix_search_adapters_{names}", "sqlite")
    order = (column.desc() if query.descending else column.asc() for column in key)
    return statement.order_by(*order).limit(query.limit + 1)


def _conditions(query: AdapterQuery, base_id: int | None) -> Iterator[ColumnElement[bool]]:
    if base_id is not None:
        yield Row.base_model_id == base_id
    if query.license is not None:
        yield Row.license == query.license
    if query.sound is not None:
        yield Row.sound.is_(query.sound)
    if query.fusable is not None:
        yield Row.fusable.is_(query.fusable)
    yield from (*_ranks(query), *_sizes(query), *_dates(query))
    for kind in query.targets:
        yield exists().where(models.Target.version_id == Row.version_id, models.Target.kind == kind)
    for tag in query.tags:
        yield exists().where(models.Tag.version_id == Row.version_id, models.Tag.tag == tag)
    for word in query.words:
        yield exists().where(models.SearchWord.version_id == Row.version_id, _begins_with(word))
    if not query.all_versions:
        newer = aliased(Row)
        yield ~exists().where(newer.name == Row.name, newer.number > Row.number)


def _ranks(query: AdapterQuery) -> Iterator[ColumnElement[bool]]:
    if query.min_rank is not None or query.max_rank is not None:
        # A rank of 0 stands for no LoRA factors at all.
        yield Row.max_rank >= max(query.min_rank or 1, 1)
    if query.max_rank is not None:
        yield Row.max_rank <= query.max_rank


def _sizes(query: AdapterQuery) -> Iterator[ColumnElement[bool]]:
    if query.min_bytes is not None:
        yield Row.weights_bytes >= query.min_bytes
    if query.max_bytes is not None:
        yield Row.weights_bytes <= query.max_bytes


def _dates(query: AdapterQuery) -> Iterator[ColumnElement[bool]]:
    if query.added_from is not None:
        yield Row.added_at >= query.added_from
    if query.added_before is not None:
        yield Row.added_at < query.added_before


def _begins_with(prefix: str) -> ColumnElement[bool]:
    word = models.SearchWord.word
    return and_(word >= prefix, word < prefix + _LAST_CHARACTER)


def _cursor_after(query: AdapterQuery, key: Sequence[str | int | datetime]) -> str:
    values = (value.isoformat() if isinstance(value, datetime) else value for value in key)
    return encode_cursor(query.question, tuple(values))


def _place_of(query: AdapterQuery, cursor: str) -> tuple[str | int | datetime, ...]:
    is_text = query.order in (Order.NAME, Order.DATE)
    first, second = decode_cursor(cursor, query.question, (str if is_text else int, int))
    if query.order is Order.DATE:
        try:
            return datetime.fromisoformat(str(first)), second
        except ValueError as error:
            raise not_a_cursor(cursor) from error
    return first, second


def _summaries(session: Session, identifiers: Sequence[int]) -> tuple[AdapterSummary, ...]:
    rows = session.scalars(
        select(models.AdapterVersion)
        .where(models.AdapterVersion.id.in_(identifiers))
        .options(*SUMMARY_OPTIONS)
    )
    found = {row.id: adapter_summary(row) for row in rows}
    return tuple(found[identifier] for identifier in identifiers)
