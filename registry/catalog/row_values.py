"""The values of a row as they stand in a JSON document, and back, each checked against its column."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Column, Double, Integer, RowMapping, String, Table

from ...schemas.digest import Digest
from ...schemas.finding import Finding
from ...schemas.manifest import Origin
from ...schemas.names import check_alias, check_file_name, check_folder_path, check_name
from .bundles import read_record
from .columns import (
    MAX_DTYPES_CHARACTERS,
    DigestText,
    DtypesText,
    ForeignText,
    UtcDateTime,
    clean_foreign_text,
)

# Columns whose values mean more than their types say.
_MEANINGS: dict[tuple[str, str], Callable[[Any], object]] = {
    ("entries", "name"): check_name,
    ("tags", "tag"): lambda tag: check_name(tag, what="tag"),
    ("aliases", "alias"): check_alias,
    ("adapter_files", "name"): check_file_name,
    ("bundle_members", "name"): check_name,
    ("bundle_versions", "path"): check_folder_path,
    ("adapter_versions", "findings"): lambda findings: [
        Finding.from_value(finding, what="finding") for finding in _require(list, findings)
    ],
    ("events", "details"): lambda details: _require(dict, details),
    ("verifications", "record"): read_record,
}


def write_row(table: Table, row: RowMapping) -> dict[str, Any]:
    """The row as JSON values."""
    return {column.name: _to_json(column, row[column.name]) for column in table.columns}


def read_row(table: Table, values: Mapping[str, Any]) -> dict[str, Any]:
    """The row that these JSON values are.

    Raises:
        ValueError: a column is missing, unknown, or has a value that it cannot hold; a ``MeteoraError``
            where the value means more than its type.
    """
    if values.keys() != set(table.c.keys()):
        differing = ", ".join(f"`{key}`" for key in sorted(values.keys() ^ set(table.c.keys()))[:5])
        raise ValueError(f"the columns of `{table.name}` differ: {differing}")
    row = {column.name: _read_value(table, column, values[column.name]) for column in table.columns}
    if table.name == "adapter_versions":
        read_origin(row["origin_kind"], row["origin_location"], row["origin_commit"])
    return row


def read_origin(kind: str, location: str, commit: str | None) -> Origin:
    """Return the origin that three columns of an adapter version state.

    Raises:
        InvalidDocument: they state none.
    """
    return Origin.from_value({"kind": kind, "location": location, "commit": commit}, what="origin")


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
    """The value of the column's type; None for any other value."""
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


def _require(kind: type[list[Any]] | type[dict[str, Any]], value: Any) -> Any:
    # Both are JSON columns, which say no more of what they hold.
    if not isinstance(value, kind):
        raise ValueError(f"found a JSON {type(value).__name__}, expected a {kind.__name__}")  # noqa: TRY004
    return value


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
