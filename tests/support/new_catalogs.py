"""New catalogs on SQLite are copies of one, and what is the same for all catalogs is worked out once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, MetaData
from sqlalchemy.engine import URL, Dialect
from sqlalchemy.util import LRUCache

from meteora_registry.registry.catalog import database
from meteora_registry.registry.catalog import engine as engines
from meteora_registry.registry.catalog.engine import sqlite_url

if TYPE_CHECKING:
    from alembic.migration import MigrationContext


@contextmanager
def copied_catalogs(folder: Path) -> Iterator[None]:
    """Apply the revisions to the first new catalog alone within the block; locks and renames stay."""
    prepared: list[bytes] = []
    apply = database._run_revisions

    def copy_or_apply(url: URL) -> None:
        path = database.sqlite_path(url)
        if path is None or path.exists():
            apply(url)
            return
        if not prepared:
            apply(sqlite_url(folder / "prepared.db"))
            # From memory, since not every user of the tests may look into the folder.
            prepared.append((folder / "prepared.db").read_bytes())
        path.write_bytes(prepared[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "_run_revisions", copy_or_apply)
        yield


@contextmanager
def remembered_schemas() -> Iterator[None]:
    """Compare each schema with the models once within the block, which takes most of the time of a check."""
    # Imported with the first upgrade anyway.
    from alembic import autogenerate

    found: dict[tuple[object, ...], list[Any]] = {}
    compare = autogenerate.compare_metadata

    def compare_or_remember(context: MigrationContext, metadata: MetaData) -> list[Any]:
        connection = context.connection
        assert connection is not None
        statement = _SCHEMAS[connection.dialect.name]
        schema = tuple(tuple(row) for row in connection.exec_driver_sql(statement))
        if schema not in found:
            found[schema] = compare(context, metadata)
        return found[schema]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autogenerate, "compare_metadata", compare_or_remember)
        yield


# All of a schema as the database itself keeps it.
_SCHEMAS = {
    "sqlite": "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name",
    "postgresql": " UNION ALL ".join(
        f"SELECT md5(string_agg(row::text, ' ' ORDER BY row::text)) FROM {table} row WHERE {key} >= 16384"
        for table, key in (
            ("(SELECT oid, relname, relnamespace, relkind FROM pg_class)", "oid"),
            ("pg_attribute", "attrelid"),
            ("pg_attrdef", "adrelid"),
            ("pg_constraint", "conrelid"),
            ("pg_index", "indrelid"),
        )
    ),
}


@contextmanager
def shared_statements() -> Iterator[None]:
    """Let each statement be compiled once for each kind of database, and not for every engine again.

    An engine lives as long as an open catalog, so the statements of a test would all be compiled anew.
    """
    compiled: LRUCache[Any, Any] = LRUCache(2000)
    create = engines.create_engine

    def create_engine(url: URL, **options: Any) -> Engine:
        engine = create(url, **options)
        engine._compiled_cache = compiled
        return engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "create_engine", create_engine)
        # The dialect is a part of the key, and each engine has its own.
        patch.setattr(Dialect, "__hash__", lambda self: hash(type(self)))
        patch.setattr(Dialect, "__eq__", lambda self, other: type(self) is type(other))
        yield
