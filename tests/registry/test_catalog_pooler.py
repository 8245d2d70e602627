"""A catalog behind PgBouncer in transaction mode: every promise of a transaction holds in any session."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from meteora_registry.registry.catalog import engine as engines
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.catalog.engine import connection_to, engine_for, parse_catalog_url, transaction
from meteora_registry.registry.cli.main import run
from meteora_registry.registry.home import Home
from meteora_registry.schemas.errors import CatalogUnusable
from support.catalogued import new_adapter

SETTINGS = (
    "lock_timeout",
    "statement_timeout",
    "idle_in_transaction_session_timeout",
    "transaction_isolation",
)
READS = ("1min", "2min", "1h", "repeatable read")
WRITES = ("1min", "2min", "1h", "read committed")


@pytest.fixture(params=["postgres_catalog_url", "pgbouncer_catalog_url"], ids=["direct", "pgbouncer"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty catalog."""
    url: str = request.getfixturevalue(request.param)
    return url


def shown(connection: sa.Connection) -> tuple[str, ...]:
    """Return the settings in force."""
    return tuple(str(connection.exec_driver_sql(f"SHOW {name}").scalar()) for name in SETTINGS)


def test_timeouts_and_isolation_are_those_promised_in_every_session(url: str) -> None:
    with engine_for(parse_catalog_url(url)) as engine:

        def look(number: int) -> tuple[str, ...]:
            with connection_to(engine, writes=number % 2 == 1) as connection:
                return shown(connection)

        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(look, range(24))) == [READS, WRITES] * 12
        # Outside a catalog's own transactions a session is as the server makes it.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.connection.cursor().execute("SELECT 1")
            raw = connection.connection.cursor().execute("SHOW lock_timeout").fetchone()
        assert raw == ("0",)


def test_migration_has_no_limit_for_a_statement(url: str) -> None:
    with (
        engine_for(parse_catalog_url(url), foreign_keys=False) as engine,
        connection_to(engine) as connection,
    ):
        assert shown(connection)[1] == "0"


@pytest.mark.parametrize(
    ("variable", "options", "found"),
    [
        ("", "-c%20statement_timeout%3D77000", "77s"),
        ("-c statement_timeout=5s", "", "5s"),
        ("-c statement_timeout=5s", "--statement-timeout%3D6s", "6s"),
        ("-cstatement_timeout=7\\ s  -c default_transaction_isolation=serializable", "", "7s"),
    ],
    ids=["url", "variable", "url before variable", "escaped"],
)
def test_stated_options_take_precedence(
    url: str, variable: str, options: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOPTIONS", variable)
    stated = f"{url}&options={options}" if options else url
    with engine_for(parse_catalog_url(stated)) as engine, connection_to(engine) as connection:
        assert shown(connection) == (READS[0], found, *READS[2:])


def test_option_that_no_transaction_can_have_is_sent_with_the_connection(
    postgres_catalog_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOPTIONS", "-S 1234 -c lock_timeout=9s")
    with engine_for(parse_catalog_url(postgres_catalog_url)) as engine, connection_to(engine) as connection:
        assert shown(connection)[0] == "9s"
        assert connection.exec_driver_sql("SHOW work_mem").scalar() == "1234kB"


def test_option_that_does_not_exist_is_an_error_of_the_catalog(url: str) -> None:
    with (
        engine_for(parse_catalog_url(f"{url}&options=-c%20no_such_setting%3D1")) as engine,
        pytest.raises(CatalogUnusable, match="no_such_setting"),
        connection_to(engine),
    ):
        pass


def test_writer_that_waits_too_long_is_refused(url: str, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "BUSY_TIMEOUT_SECONDS", 0.2)
    with (
        Catalog.open(Home(home.folder, url)) as catalog,
        transaction(catalog._engine, writes=True),
        pytest.raises(CatalogUnusable, match="stayed busy: another process has been writing to it"),
    ):
        catalog.add_version(new_adapter())


def test_reader_sees_one_state_while_others_write(url: str, home: Home) -> None:
    count = sa.text("SELECT count(*) FROM versions")
    with Catalog.open(Home(home.folder, url)) as catalog, connection_to(catalog._engine) as connection:
        assert connection.scalar(count) == 0
        catalog.add_version(new_adapter())
        assert connection.scalar(count) == 0


def test_database_in_another_encoding_is_refused_by_upgrade_in_one_sentence(
    url: str, postgres_server: str, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    administrator = parse_catalog_url(postgres_server)
    create = "CREATE DATABASE in_latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    with engine_for(administrator) as engine:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(create)
        try:
            named = parse_catalog_url(url).set(database="in_latin")
            assert run(["--catalog", named.render_as_string(hide_password=False), "db", "upgrade"]) == 2
        finally:
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("DROP DATABASE in_latin WITH (FORCE)")
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: the database of the catalog `postgresql:")
    assert error.endswith("` has the encoding `LATIN1`, expected `UTF8`")
    assert hint == "hint: create one with `createdb --encoding UTF8 --template template0 NAME`"
