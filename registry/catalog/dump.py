"""A catalog as a document: JSON lines that either database writes and reads, row by row, without loss.

The first line has the format's number and the schema's revision. Each line after it is one row, the tables
in an order in which a row refers to earlier ones only. The last line has the number of rows of each table and
the digest of all lines before it, so that a document which was cut off or changed is recognised. The search's
index is left out and made again, because it follows from the other tables.

Every value is checked against the type of its column, and against its meaning where the type is not enough.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import BinaryIO

from sqlalchemy import Connection, exists, func, insert, select
from sqlalchemy.exc import DataError, IntegrityError

from ...files.digests import Hasher
from ...files.progress import Progress, Step, silent
from ...schemas.bundle import CONFIG_FILE, WEIGHTS_FILE
from ...schemas.document import load_json
from ...schemas.errors import AlreadyInCatalog, InvalidDocument, MeteoraError
from .chain import chain
from .models import (
    ADAPTER,
    BUNDLE,
    Base,
    adapter_files,
    adapter_versions,
    bundle_versions,
    entries,
    search_adapters,
    search_words,
    versions,
)
from .rows import Row, read_row, write_row
from .search_index import rebuild_index
from .trash import find_trash_problems

FORMAT = 1
# The schema of the first catalogs that could be exported.
FIRST_EXPORTED_REVISION = "0002"
# Twice the largest verification record, each character of which may be escaped, and its row.
MAX_LINE_BYTES = 514 << 20
_BATCH_ROWS = 500
_BATCH_BYTES = 8 << 20

TABLES = {
    table.name: table for table in Base.metadata.sorted_tables if table not in (search_adapters, search_words)
}


def write_document(
    connection: Connection, revision: str, file: BinaryIO, progress: Progress = silent
) -> dict[str, int]:
    """Write a catalog, a few hundred rows at a time; return the number of rows of each table.

    ``connection`` is in a transaction that sees one state of the catalog throughout.
    """
    counts = {
        name: connection.execute(select(func.count()).select_from(table)).scalar_one()
        for name, table in TABLES.items()
    }
    # The head is a line, too.
    step = Step("exporting", sum(counts.values()) + 1, progress)
    hasher = Hasher()
    for line in _lines(connection, revision):
        file.write(line)
        hasher.update(line)
        step.advance()
    file.write(_line({"rows": counts, "sha256": hasher.digest}))
    return counts


def read_document(
    connection: Connection, revision: str, file: BinaryIO, what: str, progress: Progress = silent
) -> dict[str, int]:
    """Read a document into an empty catalog, some rows at a time; return the number of rows of each table.

    ``connection`` is in a transaction that writes, and has to be undone if this raises.

    Raises:
        AlreadyInCatalog: the catalog is not empty.
        InvalidDocument: it is not such a document, is of another schema, was cut off or changed, or has rows
            that no catalog can hold.
    """
    _require_empty(connection)
    document = _Document(file, what)
    document.check_head(revision)
    counts = dict.fromkeys(TABLES, 0)
    # How many rows there are is in the last line.
    step = Step("importing", 0, progress)
    for name, rows in _batches(document.rows()):
        try:
            connection.execute(insert(TABLES[name]), rows)
        except (IntegrityError, DataError) as error:
            reason = str(error.orig).strip().partition("\n")[0]
            raise document.problem(f"a row of `{name}` up to here cannot be stored: {reason}") from error
        counts[name] += len(rows)
        step.advance(len(rows))
    document.check_tail(counts)
    for problem in _find_contradictions(connection):
        raise document.problem(problem)
    _continue_counters(connection)
    rebuild_index(connection)
    return counts


class _Document:
    """The lines of a document, counted and hashed on the way; messages name the line read last."""

    def __init__(self, file: BinaryIO, what: str) -> None:
        self._file = file
        self._what = what
        self._number = 0
        self._hasher = Hasher()
        self._tail: Row = {}
        self._is_older = False
        self._last_event: Row = {"id": None, "digest": None}

    def check_head(self, revision: str) -> None:
        """Check that the first line is that of a document of this format and schema."""
        head, line = self._read_line()
        self._hasher.update(line)
        if head.keys() != {"meteora_catalog", "schema"}:
            raise self.problem("not a catalog that `meteora-registry db export` wrote")
        found = head["schema"]
        is_known = isinstance(found, str) and FIRST_EXPORTED_REVISION <= found <= revision
        if head["meteora_catalog"] != FORMAT or not is_known:
            raise self.problem(
                f"a catalog of format {head['meteora_catalog']!r} and schema {found!r}, expected "
                f"{FORMAT} and {revision!r}; export and import it with the same version of meteora-registry"
            )
        self._is_older = found < revision

    def rows(self) -> Iterator[tuple[str, Row, int]]:
        """Yield table, row, and length of each line, up to the last one, which is kept for ``check_tail``."""
        order = list(TABLES)
        reached = 0
        while True:
            value, line = self._read_line()
            if value.keys() == {"rows", "sha256"}:
                self._tail = value
                return
            name, row = value.get("table"), value.get("row")
            if (
                len(value) != 2
                or not isinstance(name, str)
                or not isinstance(row, dict)
                or name not in TABLES
            ):
                raise self.problem("neither a row of a table nor the last line")
            if order.index(name) < reached:
                raise self.problem(f"a row of `{name}` after those of `{order[reached]}`")
            reached = order.index(name)
            self._hasher.update(line)
            yield name, self._checked(name, row), len(line)

    def check_tail(self, counts: dict[str, int]) -> None:
        """Check that the last line has these numbers of rows and the digest of all lines before it."""
        listed = self._tail["rows"]
        if self._is_older and isinstance(listed, dict):
            # Tables that were added since are empty.
            listed = dict.fromkeys(counts, 0) | listed
        if listed != counts or self._tail["sha256"] != self._hasher.digest:
            raise self.problem("the lines before are not those that were written")
        if self._file.read(1):
            raise self.problem("something follows the last line")

    def problem(self, reason: str) -> InvalidDocument:
        """Return an error about the line that was read last."""
        return InvalidDocument(f"`{self._what}`, line {self._number}: {reason}")

    def _read_line(self) -> tuple[Row, bytes]:
        self._number += 1
        line = self._file.readline(MAX_LINE_BYTES + 1)
        if len(line) > MAX_LINE_BYTES:
            raise self.problem(f"longer than {MAX_LINE_BYTES} bytes")
        if not line.endswith(b"\n"):
            raise self.problem("the document ends before its last line")
        value = load_json(line, what=f"{self._what}, line {self._number}", max_bytes=MAX_LINE_BYTES)
        if not isinstance(value, dict):
            raise self.problem("not a JSON object")
        return value, line

    def _checked(self, name: str, row: Row) -> Row:
        try:
            read = read_row(TABLES[name], row, is_older=self._is_older)
            return self._chained(read) if name == "events" else read
        except (ValueError, MeteoraError) as error:
            raise self.problem(str(error)) from error

    def _chained(self, event: Row) -> Row:
        """Return the event with its digest, which schemas before `0004` do not have."""
        last, self._last_event = self._last_event, event
        digest = chain(last["digest"], event)
        is_next = last["id"] is None or last["id"] < event["id"]
        if not is_next or event["digest"] not in (None, digest):
            raise ValueError("the event does not follow from the one before it, so the history was changed")
        event["digest"] = digest
        return event


def _lines(connection: Connection, revision: str) -> Iterator[bytes]:
    yield _line({"meteora_catalog": FORMAT, "schema": revision})
    for name, table in TABLES.items():
        query = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=_BATCH_ROWS)
        for row in connection.execute(query):
            yield _line({"table": name, "row": write_row(table, row._mapping)})


def _line(value: Row) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _require_empty(connection: Connection) -> None:
    for name, table in TABLES.items():
        if connection.scalar(select(exists(select(*table.primary_key.columns)))):
            raise AlreadyInCatalog(
                f"the catalog is not empty: it has rows in `{name}`",
                hint="import into a new one, which `--home` or `--catalog` names",
            )


def _batches(rows: Iterator[tuple[str, Row, int]]) -> Iterator[tuple[str, list[Row]]]:
    """Yield rows of one table, some hundreds or a few megabytes together."""
    batch: list[Row] = []
    batch_of, size_bytes = "", 0
    for name, row, line_bytes in rows:
        if batch and (name != batch_of or len(batch) == _BATCH_ROWS or size_bytes > _BATCH_BYTES):
            yield batch_of, batch
            batch, size_bytes = [], 0
        batch.append(row)
        batch_of, size_bytes = name, size_bytes + line_bytes
    if batch:
        yield batch_of, batch


def _find_contradictions(connection: Connection) -> Iterator[str]:
    """Yield what no constraint of the database refuses, and no catalog has."""
    for kind, facts in ((ADAPTER, adapter_versions), (BUNDLE, bundle_versions)):
        of_kind = select(versions.c.id).where(versions.c.kind == kind)
        described = select(facts.c.id)
        if connection.scalar(select(exists(of_kind.except_(described).subquery().select()))):
            yield f"a version of kind `{kind}` has no row in `{facts.name}`"
        if connection.scalar(select(exists(described.except_(of_kind).subquery().select()))):
            yield f"a row of `{facts.name}` belongs to a version of another kind"
    behind = select(entries.c.id).join(versions, versions.c.entry_id == entries.c.id)
    if connection.scalar(select(exists(behind.where(versions.c.number > entries.c.latest_version)))):
        yield "a version has a number above the `latest_version` of its name"
    yield from find_trash_problems(connection)
    # A version whose config and weights are not among its files could not be used for anything.
    for name, digest in (
        (CONFIG_FILE, adapter_versions.c.config_sha256),
        (WEIGHTS_FILE, adapter_versions.c.weights_sha256),
    ):
        own = select(adapter_files).where(
            adapter_files.c.version_id == adapter_versions.c.id,
            adapter_files.c.name == name,
            adapter_files.c.sha256 == digest,
        )
        if connection.scalar(select(exists(select(adapter_versions.c.id).where(~own.exists())))):
            yield f"a version has no file `{name}` with the digest that it states"


def _continue_counters(connection: Connection) -> None:
    """Make ids continue after the largest: PostgreSQL counts them separately, SQLite does not."""
    if connection.dialect.name != "postgresql":
        return
    for name, table in TABLES.items():
        if table.autoincrement_column is not None:
            column = table.autoincrement_column.name
            connection.exec_driver_sql(
                f"SELECT setval(pg_get_serial_sequence('{name}', '{column}'), max({column})) FROM {name} "  # noqa: S608
                f"HAVING max({column}) IS NOT NULL"
            )
