"""Rows of the catalog's tables as JSON values, and back: each checked against its column and its meaning.

An export has them, and the trash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Column, Double, Integer, RowMapping, String, Table

from ...schemas.digest import Digest
from ...schemas.errors import CatalogUnusable, InvalidDocument
from ...schemas.evaluation import EvaluationSummary
from ...schemas.finding import Finding
from ...schemas.names import (
    CatalogSource,
    check_alias,
    check_entry,
    check_file_name,
    check_folder_path,
    check_name,
    parse_catalog_source,
)
from ...schemas.verification import VerificationRecord
from .adapters import read_origin
from .bundles import read_record
from .column_types import (
    MAX_DTYPES_CHARACTERS,
    DigestText,
    DtypesText,
    ForeignText,
    UtcDateTime,
    clean_foreign_text,
)
from .models import (
    Base,
    adapter_files,
    bundle_members,
    evaluations,
    events,
    trash_rows,
)

# The tables with rows of a version, in an order in which a row refers to earlier ones only.
VERSION_TABLES = (
    "versions",
    "adapter_versions",
    "bundle_versions",
    "adapter_files",
    "adapter_targets",
    "bundle_members",
    "verifications",
    "tags",
    "aliases",
)
ENTRIES = "entries"
# What the trash keeps of a name, and of a member in place of the number of its adapter.
_STATED = ("note", "owner")
MEMBER = "adapter"
# Other numbers in the place where a removed version is put back.
_NUMBERS = frozenset({"id", "entry_id", "version_id", "bundle_version_id", "adapter_version_id", "number"})

Row = dict[str, Any]

# Columns whose values mean more than their types say.
_MEANINGS: dict[tuple[str, str], Callable[[Any], object]] = {
    ("entries", "name"): check_entry,
    ("tags", "tag"): lambda tag: check_name(tag, what="tag"),
    ("aliases", "alias"): check_alias,
    ("adapter_files", "name"): check_file_name,
    ("bundle_members", "name"): check_name,
    ("bundle_versions", "path"): check_folder_path,
    ("adapter_versions", "findings"): lambda findings: [
        Finding.from_value(finding, what="finding") for finding in _require(list, findings)
    ],
    ("events", "details"): lambda details: _require(dict, details),
    ("verifications", "record"): lambda record: _require_no_contradiction(read_record(record)),
    ("trash", "name"): check_entry,
}


def write_row(table: Table, row: RowMapping) -> dict[str, Any]:
    """Return the row as JSON values."""
    return {column.name: _to_json(column, row[column.name]) for column in table.columns}


def read_row(table: Table, values: Mapping[str, Any], *, is_older: bool = False) -> dict[str, Any]:
    """Return a row from its JSON values; one of an older schema may lack columns that may be null or follow.

    Raises:
        ValueError: a column is missing, unknown, or has a value that it cannot hold; a ``MeteoraError``
            where the value means more than its type.
    """
    later = {column.name for column in table.columns if column.nullable} if is_older else set()
    if is_older and table is events:
        later.add("digest")
    if differing := (values.keys() ^ set(table.c.keys())) - (later - values.keys()):
        shown = ", ".join(f"`{key}`" for key in sorted(differing)[:5])
        raise ValueError(f"the columns of `{table.name}` differ: {shown}")
    row: dict[str, Any] = {
        column.name: None
        if column.name in later - values.keys()
        else _read_value(table, column, values[column.name])
        for column in table.columns
    }
    if table.name == "adapter_versions":
        read_origin(row["origin_kind"], row["origin_location"], row["origin_commit"])
    if table is trash_rows:
        read_trashed_row(row["of_table"], row["content"], row["sha256"])
    if table is evaluations:
        _check_scores(row)
    return row


def write_trashed_row(table: Table, row: RowMapping) -> dict[str, Any]:
    """Return the row of a removed version as JSON values, without what it is numbered by."""
    return {key: value for key, value in write_row(table, row).items() if key not in _NUMBERS}


def read_trashed_row(name: str, content: Mapping[str, Any], sha256: Digest | None, **numbers: int) -> Row:
    """Return the row for a table from what ``write_trashed_row`` returned.

    Args:
        name: the table.
        content: the values.
        sha256: the digest beside them, which is that of a file.
        numbers: the columns by which the row is numbered from now on; those of others are left out.

    Raises:
        ValueError: it is not such a row; a ``MeteoraError`` where a value means more than its type.
    """
    _require(dict, content)
    if name == ENTRIES:
        if content.keys() != set(_STATED) or not all(
            isinstance(each, str | None) for each in content.values()
        ):
            raise ValueError("a removed version has something else than a note and an owner")
        return {key: None if each is None else clean_foreign_text(each) for key, each in content.items()}
    if name not in VERSION_TABLES:
        raise ValueError(f"a removed version has no row in `{name}`")
    table = Base.metadata.tables[name]
    values = dict(content)
    if table is bundle_members:
        member = values.pop(MEMBER, None)
        if member is not None:
            parse_catalog_source(_require(str, member))
    if known := _NUMBERS & values.keys():
        raise ValueError(f"a removed version has the number `{min(known)}`")
    values |= {column: numbers.get(column, 1) for column in _NUMBERS & set(table.c.keys())}
    row = read_row(table, values, is_older=True)
    if sha256 != (row["sha256"] if table is adapter_files else None):
        raise ValueError("a removed version has another digest than its file")
    return {key: value for key, value in row.items() if key not in _NUMBERS or key in numbers}


def damaged(source: CatalogSource, error: Exception) -> CatalogUnusable:
    """Return the error about a removed version whose rows ``read_trashed_row`` refused."""
    return CatalogUnusable(
        f"what the trash has of `{source}` cannot be put back: {error}",
        hint=f"delete it with `meteora-registry remove {source} --for-good`",
    )


def _to_json(column: Column[Any], value: Any) -> Any:
    if isinstance(column.type, DtypesText):
        return " ".join(value) or None
    return value.isoformat(timespec="microseconds") if isinstance(value, datetime) else value


def _read_value(table: Table, column: Column[Any], value: Any) -> Any:
    where = f"`{table.name}.{column.name}`"
    if value is None:
        if not column.nullable:
            raise ValueError(f"{where} is null")
        return None
    found = _from_json(column, value)
    if found is None:
        raise ValueError(f"{where} cannot be `{str(value)[:80]}`")
    check = _MEANINGS.get((table.name, column.name))
    if check is not None:
        check(found)
    return found


def _from_json(column: Column[Any], value: Any) -> Any:
    """Return the value in the column's type; None if it is not a value of that type."""
    kind = column.type
    match kind, value:
        case DigestText(), str():
            return Digest(value)
        case UtcDateTime(), str():
            return _moment(value)
        case ForeignText(), str():
            return value if value == clean_foreign_text(value) else None
        case DtypesText(), str():
            return tuple(value.split()) if _fits(value, MAX_DTYPES_CHARACTERS) else None
        case String(), str():
            return value if _fits(value, kind.length) else None
        case Boolean(), bool():
            return value
        case Integer(), int() if not isinstance(value, bool):
            bits = 63 if isinstance(kind, BigInteger) else 31
            return value if -(2**bits) <= value < 2**bits else None
        case Double(), int() | float() if not isinstance(value, bool):
            return _number(value)
        case JSON(), dict() | list():
            return value
        case _:
            return None


def _require(kind: type[list[Any]] | type[dict[str, Any]] | type[str], value: Any) -> Any:
    # Both are JSON columns, which say no more of what they hold.
    if not isinstance(value, kind):
        raise ValueError(f"found a JSON {type(value).__name__}, expected a {kind.__name__}")  # noqa: TRY004
    return value


def _require_no_contradiction(record: VerificationRecord) -> None:
    if found := record.contradictions():
        raise InvalidDocument(f"a record is not what a verification writes: {found[0]}")


def _check_scores(row: Row) -> None:
    """Refuse an evaluation whose own columns, which lists read, are not what its scores come to."""
    summary = EvaluationSummary.from_value(row["summary"], what="evaluation")
    stated, found = (row["items"], row["of_members"]), (summary.items, summary.of_members)
    if stated != found:
        raise ValueError(
            f"an evaluation states {stated[1]} of {stated[0]} items, its scores {found[1]} of {found[0]}"
        )


def _moment(text: str) -> datetime | None:
    moment = datetime.fromisoformat(text)
    try:
        # Stored in UTC; the first and the last day of the calendar have moments that UTC does not.
        return moment.astimezone(UTC) if moment.utcoffset() is not None else None
    except OverflowError:
        return None


def _number(value: float) -> float | None:
    try:
        return float(value)
    except OverflowError:
        return None


def _fits(text: str, max_characters: int | None) -> bool:
    """Return whether a column of this length holds the text, and every database can."""
    if max_characters is not None and len(text) > max_characters:
        return False
    return not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text)
