"""Search: one page of the adapter versions that meet a query, in an order of the caller's choice.

The cost of a page must not grow with the catalog. Two simple plans each fail on some queries: reading rows in
the wanted order until the page is full reads the whole catalog where matches are rare, and fetching every
match of one condition reads half of it where matches are common. So a search first counts, and then chooses:

1. Count how many versions meet each condition that has an index, up to 3000. If the rarest has at most that
   many, check each of them.
2. Otherwise matches are common, and the next rows in the wanted order, 20 for each entry of the page, usually
   contain enough. They may also contain none: matches can be common overall yet absent from the first rows of
   the order, such as the largest adapters first, where the base that was asked for has only small ones.
3. In that case, estimate from the matches found how many rows would fill the page. Read that many if it is
   fewer than the versions that meet the rarest condition; otherwise check what meets the two rarest.

The statement fixes the choice on both databases: candidates are a subquery that runs first and by itself.
SQLite keeps no statistics of a growing catalog, and PostgreSQL plans a prepared statement for any values:
for a frequent tag of one base among 100,000 versions it took 86 ms, and takes 16 ms this way.
`docs/catalog-speed.md` has the times of every kind of query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, literal, select, tuple_
from sqlalchemy import Row as Answer
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute, Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType

from . import models
from .adapters import read_summaries
from .bases import find_base_ids
from .models import SearchRow as Row
from .query import AdapterQuery, Key, Order, Page, decode_cursor, encode_cursor, not_a_cursor
from .records import AdapterSummary

# At or below this many candidates, check each row.
_MAX_CHECKED = 3000
# Rows read in the wanted order for each entry of the page, before anything is known about where matches are.
_ROWS_PER_ENTRY = 20
# Beyond this many versions, a condition is only called common: counting on would cost more than it saves.
_MAX_COUNTED = 20_000
# Sorts after every word with a given prefix: both databases compare words by code points.
_LAST_CHARACTER = "\U0010ffff"

# The columns of each order. The second one makes the order total, so that a cursor names one row.
_KEYS: dict[Order, tuple[InstrumentedAttribute[Any], InstrumentedAttribute[int]]] = {
    Order.NAME: (Row.name, Row.number),
    Order.DATE: (Row.added_at, Row.version_id),
    Order.SIZE: (Row.weights_bytes, Row.version_id),
    Order.RANK: (Row.max_rank, Row.version_id),
}


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition that has an index, in two forms: the versions that meet it, and a check of one row."""

    versions: Select[int]
    of_row: ColumnElement[bool]


def search(session: Session, query: AdapterQuery) -> Page[AdapterSummary]:
    """Return one page of the versions that meet the query.

    Raises:
        UsageError: the cursor belongs to another query, or is not a cursor.
    """
    base_ids: tuple[int, ...] = ()
    if query.base is not None:
        base_ids = find_base_ids(session, query.base)
        if not base_ids:
            return Page((), None)
    found = _find(session, query, base_ids)
    rows = found[: query.limit]
    following = _cursor_after(query, rows[-1][1:]) if len(found) > query.limit else None
    summaries = read_summaries(session, [row.version_id for row in rows]) if rows else {}
    return Page(tuple(summaries[row.version_id] for row in rows), following)


def _find(session: Session, query: AdapterQuery, base_ids: tuple[int, ...]) -> Sequence[Answer[Any]]:
    """Return the page's versions with their sort keys, and one more if there is a next page."""
    filters = list(_filters(query, base_ids))
    wanted = query.limit + 1
    if not filters:
        page = select(Row.version_id, *_KEYS[query.order]).where(*_unindexed(query), *_after(query))
        return session.execute(page.order_by(*_order(query)).limit(wanted)).all()
    (fewest, rarest), *_ = _counted(session, filters, _MAX_CHECKED + 1)
    if fewest <= _MAX_CHECKED:
        others = [each for each in filters if each is not rarest]
        return session.execute(_page(query, others, rarest.versions)).all()
    rows = _ROWS_PER_ENTRY * wanted
    found = session.execute(_page(query, filters, _next_rows(query, rows))).all()
    if len(found) == wanted:
        return found
    counted = _counted(session, filters, _MAX_COUNTED)
    # Twice as many rows as would fill the page if matches were as dense everywhere as in those just read.
    enough = 2 * wanted * rows // max(len(found), 1)
    if enough < counted[0][0]:
        found = session.execute(_page(query, filters, _next_rows(query, enough))).all()
        if len(found) == wanted:
            return found
    return _check_rarest(session, query, counted)


def _counted(session: Session, filters: Sequence[Filter], limit: int) -> list[tuple[int, Filter]]:
    """Return how many versions meet each condition, counted up to a limit; the rarest first."""
    postings = (each.versions.limit(limit).subquery() for each in filters)
    counts = select(*(select(func.count()).select_from(each).scalar_subquery() for each in postings))
    return sorted(zip(session.execute(counts).one(), filters, strict=True), key=lambda each: each[0])


def _check_rarest(
    session: Session, query: AdapterQuery, counted: Sequence[tuple[int, Filter]]
) -> Sequence[Answer[Any]]:
    """Return the page from all versions that meet the rarest condition."""
    rarest, *others = (each for _, each in counted)
    candidates = rarest.versions
    if others and counted[1][0] < _MAX_COUNTED:
        # The versions that meet both are found in two indexes, without reading a row of either.
        second, *others = others
        candidates = candidates.where(candidates.selected_columns[0].in_(second.versions))
    elif others:
        # Every other condition is common: most candidates meet them, so four for each entry may be enough.
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
    """Return the statement for the page's entries among some candidates, which reads no other rows."""
    return (
        select(Row.version_id, *_KEYS[query.order])
        .where(Among(Row.version_id, candidates), *(each.of_row for each in filters))
        .where(*_unindexed(query), *_after(query))
        .order_by(*_order(query))
        .limit(query.limit + 1)
    )


def _is_base(column: ColumnElement[Any], base_ids: tuple[int, ...]) -> ColumnElement[bool]:
    # Equality keeps the index's order of ranks, which a list of ids loses.
    return column == base_ids[0] if len(base_ids) == 1 else column.in_(base_ids)


def _filters(query: AdapterQuery, base_ids: tuple[int, ...]) -> Iterator[Filter]:
    """Yield the conditions that have an index, those first that are usually rare."""
    for tag in query.tags:
        yield _linked(models.Tag.version_id, models.Tag.tag == tag)
    for word in query.words:
        yield _linked(models.SearchWord.version_id, _begins_with(word))
    if base_ids:
        # One index covers the base, the latest version and the rank, so the three are one condition.
        yield _own(
            lambda of: [
                _is_base(of(Row.base_model_id), base_ids),
                *_latest(query),
                *_ranks(query, of(Row.max_rank)),
            ]
        )
    if query.license is not None:
        yield _own(lambda of: [of(Row.license) == query.license])
    for kind in query.targets:
        yield _linked(models.Target.version_id, models.Target.kind == kind)
    if not base_ids and (query.min_rank is not None or query.max_rank is not None):
        yield _own(lambda of: _ranks(query, of(Row.max_rank)))
    if query.min_bytes is not None or query.max_bytes is not None:
        yield _own(lambda of: _sizes(query, of(Row.weights_bytes)))
    if query.added_from is not None or query.added_before is not None:
        yield _own(lambda of: _dates(query, of(Row.added_at)))


def _linked(version_id: InstrumentedAttribute[int], condition: ColumnElement[bool]) -> Filter:
    """Return a condition on the rows that another table has for a version."""
    versions = select(version_id).where(condition)
    return Filter(versions, versions.where(version_id == Row.version_id).exists())


def _own(conditions: Callable[[Callable[[Any], Any]], Iterable[ColumnElement[bool]]]) -> Filter:
    """Return a condition on the version's own row.

    ``conditions`` is called with a function that it applies to each column: the columns themselves to select
    versions through an index, ``Unindexed`` to check a row that was already read.
    """
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
        # The index stores rank 0 for an adapter without LoRA factors, which meets no bound.
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


class Among(FunctionElement[Any]):
    """A condition: the column's value is one of those that a statement selects.

    PostgreSQL runs the statement first, as an array, and looks up its values one after another in an index.
    With ``IN`` it may choose any join, by what its statistics make it expect.
    """

    name = "among"
    inherit_cache = True
    # A Boolean type would be rendered as `= 1` on SQLite, which then no longer uses the index.
    type = NullType()

    def __init__(self, column: InstrumentedAttribute[Any], values: Select[Any]) -> None:
        super().__init__(column, values.correlate(None).scalar_subquery())


@compiles(Among)
def _compile_in(element: Among, compiler: SQLCompiler, **options: Any) -> str:
    column, values = element.clauses
    return f"{compiler.process(column, **options)} IN {compiler.process(values, **options)}"


@compiles(Among, "postgresql")
def _compile_any_of_array(element: Among, compiler: SQLCompiler, **options: Any) -> str:
    column, values = element.clauses
    return f"{compiler.process(column, **options)} = ANY (ARRAY{compiler.process(values, **options)})"


class Unindexed(FunctionElement[Any]):
    """A column's value for which SQLite does not use an index; PostgreSQL decides by its statistics."""

    name = "unindexed"
    inherit_cache = True

    def __init__(self, column: InstrumentedAttribute[Any]) -> None:
        super().__init__(column)
        self.type = column.type


Column = InstrumentedAttribute[Any] | Unindexed


@compiles(Unindexed)
def _compile_column(element: Unindexed, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(next(iter(element.clauses)), **options)


@compiles(Unindexed, "sqlite")
def _compile_with_plus(element: Unindexed, compiler: SQLCompiler, **options: Any) -> str:
    # A unary plus keeps SQLite's planner from using an index for the term.
    return f"+{compiler.process(next(iter(element.clauses)), **options)}"
