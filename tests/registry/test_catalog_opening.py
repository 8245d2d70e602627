"""Finding and opening a catalog, and the messages when that fails."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from meteora_registry.files.locks import hold_lock
from meteora_registry.registry.catalog import database
from meteora_registry.registry.catalog import engine as engines
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.catalog.engine import describe_url, parse_catalog_url
from meteora_registry.registry.catalog.latest import list_file
from meteora_registry.registry.catalog.revisions import HEAD_REVISION
from meteora_registry.registry.home import Home
from meteora_registry.schemas.errors import CatalogUnusable, UsageError
from support.catalogued import new_adapter

# With everything that a catalog can do, and as `list` reads it.
ways = pytest.mark.parametrize(
    "use", [Catalog.open, lambda home: list_file(home.catalog_file)], ids=["opened", "listed"]
)


@contextmanager
def sqlite(path: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection to the file that bypasses the catalog; changes are committed."""
    with closing(sqlite3.connect(path)) as connection, connection:
        yield connection


@pytest.mark.parametrize("folder", ["plain", "with space", "per%20cent", "ä:b?c#d"])
def test_the_default_catalog_is_created_on_first_use(tmp_path: Path, folder: str) -> None:
    home = Home(tmp_path / folder)
    with Catalog.open(home) as catalog:
        catalog.add_version(new_adapter())
    with Catalog.open(home) as catalog:
        assert catalog.versions_of("legal") == (1,)
    left = {path.name for path in home.folder.iterdir()}
    assert left == {"catalog.db", "catalog.db.lock"}


def test_a_sqlite_catalog_uses_a_write_ahead_log_and_foreign_keys(home: Home, catalog: Catalog) -> None:
    with engines.connection_to(catalog._engine) as connection:
        values = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "busy_timeout")
        ]
    assert values == ["wal", 1, engines.BUSY_TIMEOUT_SECONDS * 1000]


def test_what_a_crash_left_of_a_new_catalog_is_no_hindrance(home: Home) -> None:
    home.folder.mkdir()
    for name in ("catalog.db.new", "catalog.db.new-journal", "catalog.db.new-wal", "catalog.db.new-shm"):
        (home.folder / name).write_bytes(b"half of one")
    with Catalog.open(home) as catalog:
        assert catalog.list_adapters() == ()
    assert {path.name for path in home.folder.iterdir()} == {"catalog.db", "catalog.db.lock"}


def test_of_two_that_create_a_catalog_the_second_takes_the_first_ones(home: Home, tmp_path: Path) -> None:
    first = Home(tmp_path / "first")
    with Catalog.open(first) as catalog:
        catalog.add_version(new_adapter())
    with ThreadPoolExecutor() as pool:
        with hold_lock(home.folder / "catalog.db.lock"):
            second = pool.submit(database.create, home.catalog_file)
            with pytest.raises(TimeoutError):
                second.result(timeout=0.2)
            first.catalog_file.rename(home.catalog_file)
        second.result()
    with Catalog.open(home) as catalog:
        assert catalog.versions_of("legal") == (1,)


def test_a_catalog_named_by_its_url_is_not_created_by_itself(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere" / "catalog.db"
    elsewhere = Home(home.folder, f"sqlite:///{path}")
    with pytest.raises(CatalogUnusable) as caught:
        Catalog.open(elsewhere)
    assert str(caught.value) == f"there is no catalog at `{path}`"
    assert caught.value.hint == "create it with `meteora-registry db upgrade`"
    assert not path.parent.exists()
    database.upgrade(parse_catalog_url(f"sqlite:///{path}"))
    with Catalog.open(elsewhere) as catalog:
        assert catalog.list_adapters() == ()


@pytest.mark.parametrize(
    ("found", "message", "hint"),
    [
        (
            "0001",
            f"has the schema `0001`, this version needs `{HEAD_REVISION}`",
            "upgrade it with `meteora-registry db upgrade`",
        ),
        (
            "0099",
            f"has the schema `0099`, this version knows `{HEAD_REVISION}` at most",
            "upgrade meteora-registry",
        ),
        (
            "deadbeef",
            f"has the schema `deadbeef`, this version knows `{HEAD_REVISION}` at most",
            "upgrade meteora-registry",
        ),
    ],
)
@ways
def test_another_schema_is_refused_with_what_to_do(
    use: Callable[[Home], object], home: Home, found: str, message: str, hint: str
) -> None:
    Catalog.open(home).close()
    with sqlite(home.catalog_file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (found,))
    with pytest.raises(CatalogUnusable) as caught:
        use(home)
    assert str(caught.value) == f"the catalog `{home.catalog_file}` {message}"
    assert caught.value.hint == hint


def test_a_newer_schema_is_never_upgraded(home: Home) -> None:
    Catalog.open(home).close()
    with sqlite(home.catalog_file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0099'")
    with pytest.raises(CatalogUnusable, match=f"this version knows `{HEAD_REVISION}` at most"):
        database.upgrade(engines.sqlite_url(home.catalog_file))


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
@ways
def test_a_damaged_catalog_is_said_to_be_damaged(
    use: Callable[[Home], object], home: Home, content: bytes
) -> None:
    home.folder.mkdir()
    home.catalog_file.write_bytes(content)
    with pytest.raises(CatalogUnusable) as caught:
        use(home)
    assert str(caught.value) == (
        f"the catalog `{home.catalog_file}` is damaged or no catalog: file is not a database"
    )
    assert caught.value.hint == "put a backup in its place, or move it away to begin a new one"


@ways
@pytest.mark.parametrize(
    "tables", [[], ["other"], ["alembic_version"]], ids=["empty", "foreign", "no revision"]
)
def test_a_database_without_a_catalog_is_said_to_have_none(
    use: Callable[[Home], object], home: Home, tables: list[str]
) -> None:
    home.folder.mkdir()
    with sqlite(home.catalog_file) as connection:
        for table in tables:
            connection.execute(f"CREATE TABLE {table} (version_num TEXT)")
    with pytest.raises(CatalogUnusable) as caught:
        use(home)
    assert str(caught.value) == f"there is no catalog at `{home.catalog_file}`"


def test_a_file_that_went_away_is_not_made_by_listing_it(home: Home) -> None:
    home.folder.mkdir()
    with pytest.raises(CatalogUnusable, match="cannot be opened for writing: unable to open database file"):
        list_file(home.catalog_file)
    assert list(home.folder.iterdir()) == []


def test_a_catalog_is_listed_while_another_process_writes_to_it(home: Home, catalog: Catalog) -> None:
    catalog.add_version(new_adapter())
    with closing(sqlite3.connect(home.catalog_file)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE entries SET name = 'another'")
        assert [each.name for each in list_file(home.catalog_file).adapters] == ["legal"]


def test_damage_inside_a_catalog_is_found_by_the_check(home: Home) -> None:
    with Catalog.open(home) as catalog:
        catalog.add_version(new_adapter())
    with sqlite(home.catalog_file) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("DELETE FROM entries")
    with engines.engine_for(engines.sqlite_url(home.catalog_file)) as engine:
        assert database.find_problems(engine) == [
            "row 1 of `versions` refers to a row of `entries` that is not there"
        ]


def test_a_catalog_that_stays_busy_is_said_to_be_busy(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "BUSY_TIMEOUT_SECONDS", 0.05)
    with Catalog.open(home) as catalog, closing(sqlite3.connect(home.catalog_file)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert catalog.list_adapters() == ()
        with pytest.raises(CatalogUnusable, match="stayed busy: another process has been writing to it"):
            catalog.add_version(new_adapter())
        other.rollback()
        catalog.add_version(new_adapter())


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("catalog.db", "the catalog is not a URL that can be read"),
        ("mysql://host/name", "a catalog cannot be kept in `mysql`"),
        ("sqlite://", "the catalog `sqlite://` names no database"),
        ("sqlite:///:memory:", "the catalog `:memory:` names no database"),
        (
            "postgresql://user:secret@host",
            "the catalog `postgresql://user:***@host` names no database",
        ),
    ],
)
def test_a_url_that_is_none_is_refused(url: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_catalog_url(url)
    assert str(caught.value) == message
    assert caught.value.hint == "such as `sqlite:////folder/catalog.db` or `postgresql://user@host/name`"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://u@h:abc/n", "the port in the catalog's URL `postgresql://u@h:***/n` is not a number"),
        ("postgresql://u@[::1/n", "the port in the catalog's URL `postgresql://u@[::1/n` is not a number"),
        ("postgresql://u@h:0/n", "the port in the catalog's URL is 0, expected 1 to 65535"),
        ("postgresql://u@h:65536/n", "the port in the catalog's URL is 65536, expected 1 to 65535"),
        (
            "postgresql://u:a@b@h/n",
            "the host in the catalog's URL `postgresql+psycopg://u:***@h/n` cannot be read",
        ),
        (
            "postgresql://u:a%00@h/n",
            "the catalog's URL has a character that PostgreSQL does not take, such as a zero byte",
        ),
        (
            "postgresql://u@h/n?application_name=%00",
            "the catalog's URL has a character that PostgreSQL does not take, such as a zero byte",
        ),
        (
            "postgresql://u@h/\udcff",
            "the catalog's URL has a character that PostgreSQL does not take, such as a zero byte",
        ),
        ("sqlite:///a%0Ab.db", "the catalog's path has a control character"),
        (
            "sqlite://host/x.db",
            "the catalog `x.db` is a file, expected no host, user or options in its URL",
        ),
        (
            "sqlite:////x.db?timeout=abc",
            "the catalog `/x.db` is a file, expected no host, user or options in its URL",
        ),
    ],
    ids=[
        "port of letters",
        "open bracket",
        "port zero",
        "port too large",
        "two at signs",
        "zero byte in the password",
        "zero byte in an option",
        "bytes that are no text",
        "line break in a path",
        "SQLite on a host",
        "SQLite with options",
    ],
)
def test_part_of_a_url_that_cannot_be_is_refused_with_a_way_out(url: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_catalog_url(url)
    assert str(caught.value) == message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("foo=secret", "the catalog's URL has the option `foo`, which PostgreSQL does not have"),
        ("plugin=secret", "the catalog's URL has the option `plugin`, which PostgreSQL does not have"),
        (
            "host=a,b&port=1,2,3",
            "the catalog `postgresql://u@/n?host=a%2Cb&port=1%2C2%2C3` cannot be used: number of hosts and "
            "ports don't match",
        ),
    ],
    ids=["unknown", "SQLAlchemy's own", "hosts and ports"],
)
def test_option_of_a_url_that_cannot_be_is_refused(home: Home, query: str, message: str) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises((UsageError, CatalogUnusable)) as caught:
        Catalog.open(Home(home.folder, f"postgresql://u@/n?{query}"))
    assert str(caught.value).startswith(message)
    assert "secret" not in str(caught.value)


@pytest.fixture(scope="module", params=["SQL_ASCII", "LATIN1", "UTF8"])
def encoded_url(request: pytest.FixtureRequest, postgres_server: str) -> Iterator[tuple[str, str]]:
    """An encoding, and the URL of a database in it."""
    server = parse_catalog_url(postgres_server)
    name = f"in_{request.param.lower()}"
    create = (
        f"CREATE DATABASE {name} ENCODING '{request.param}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    with engines.engine_for(server) as engine:
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        with connection:
            connection.exec_driver_sql(create)
        try:
            yield request.param, server.set(database=name).render_as_string(hide_password=False)
        finally:
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql(f"DROP DATABASE {name}")


@pytest.mark.parametrize("client_encoding", [None, "SQL_ASCII", "LATIN1", "nonsense"])
def test_database_that_is_not_in_utf8_is_refused_with_a_way_out(
    encoded_url: tuple[str, str], home: Home, client_encoding: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding, url = encoded_url
    if client_encoding:
        # What the user's other programs talk in is of no consequence.
        monkeypatch.setenv("PGCLIENTENCODING", client_encoding)
    if encoding == "UTF8":
        database.upgrade(parse_catalog_url(url))
        with Catalog.open(Home(home.folder, url)) as catalog:
            catalog.add_version(new_adapter(content=str(client_encoding), license="漢字"))
            assert [each.license for each in catalog.list_adapters()] == ["漢字"]
        return
    for use in (database.upgrade, lambda url: Catalog.open(Home(home.folder, url.render_as_string(False)))):
        with pytest.raises(CatalogUnusable) as caught:
            use(parse_catalog_url(url))
        assert str(caught.value).endswith(f"` has the encoding `{encoding}`, expected `UTF8`")
        assert caught.value.hint == "create one with `createdb --encoding UTF8 --template template0 NAME`"


def test_value_that_no_catalog_holds_is_a_usage_error(any_catalog: Catalog) -> None:
    for name in ("\udcff", "a\0b"):
        try:
            assert any_catalog.history(name).items == ()
        except UsageError as error:
            assert str(error).startswith("a catalog cannot hold a value that was given: ")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_a_password_is_never_shown(scheme: str) -> None:
    url = parse_catalog_url(f"{scheme}://user:secret@host/name")
    assert describe_url(url) == "postgresql://user:***@host/name"


def test_a_server_that_is_not_there_is_a_catalog_that_cannot_be_used(tmp_path: Path, home: Home) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(CatalogUnusable) as caught:
        Catalog.open(Home(home.folder, f"postgresql://user:secret@/name?host={tmp_path}"))
    assert str(caught.value).startswith("the catalog `postgresql://user:***@/name?host=")
    assert "` cannot be reached: connection " in str(caught.value)
    hint = "see that the server runs, and check host, database and user; nothing was half recorded"
    assert caught.value.hint == hint
