from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy.exc import IntegrityError

from meteora_registry.registry.catalog import database
from meteora_registry.registry.catalog.engine import (
    connection_to,
    engine_for,
    parse_catalog_url,
    sqlite_url,
)
from meteora_registry.registry.catalog.revisions import HEAD_REVISION
from meteora_registry.registry.catalog.search_index import rebuild_index
from meteora_registry.schemas.errors import CatalogUnusable
from support import first_catalog


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> sa.URL:
    """An empty database."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "catalog.db")
    return parse_catalog_url(request.getfixturevalue("postgres_url"))


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """An empty catalog with the newest schema, as the revisions made it once."""
    if request.param == "sqlite":
        url = sqlite_url(tmp_path / "catalog.db")
        database.upgrade(url)
    else:
        url = parse_catalog_url(request.getfixturevalue("postgres_catalog_url"))
    with engine_for(url) as engine:
        yield engine


@pytest.fixture
def first(url: sa.URL) -> Iterator[sa.Engine]:
    """A catalog that the first revision made, with rows in every table."""
    first_catalog.migrate(url, "0001")
    with engine_for(url) as engine:
        first_catalog.fill(engine)
        yield engine


def test_migrations_end_at_the_revision_that_the_code_knows() -> None:
    assert ScriptDirectory.from_config(database.alembic_config()).get_heads() == [HEAD_REVISION]


def test_migrations_give_the_schema_of_the_models(engine: sa.Engine) -> None:
    assert database.find_revision(engine) == HEAD_REVISION
    assert database.find_problems(engine) == []


def test_a_schema_that_drifted_is_reported(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE tags ADD COLUMN colour TEXT"))
        connection.execute(sa.text("DROP INDEX ix_tags_tag_version_id"))
    problems = database.find_problems(engine)
    assert len(problems) == 2
    assert all("tags" in problem for problem in problems)


def test_upgrade_of_a_current_catalog_changes_nothing(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.text("INSERT INTO base_models (id, name, created_at) VALUES (1, 'b', '2026-01-01')")
        )
    database.upgrade(engine.url)
    with engine.begin() as connection:
        assert connection.execute(sa.text("SELECT name FROM base_models")).scalars().all() == ["b"]


def test_downgrade_undoes_every_table(engine: sa.Engine) -> None:
    config = database.alembic_config()
    with engine_for(engine.url, foreign_keys=False) as bare, bare.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert sa.inspect(engine).get_table_names() == ["alembic_version"]


def test_the_first_catalog_upgrades_and_goes_back_without_loss(first: sa.Engine) -> None:
    before = first_catalog.read(first)
    assert all(before.values()), "a table without rows proves nothing"
    assert before == {name: before[name] for name in before if name in first_catalog.ROWS}
    database.upgrade(first.url)
    after = first_catalog.read(first)
    assert without_new_columns(after, before) == before
    assert database.find_problems(first) == []
    first_catalog.migrate(first.url, "0001")
    assert first_catalog.read(first) == before
    assert database.find_revision(first) == "0001"


def without_new_columns(rows: first_catalog.Rows, before: first_catalog.Rows) -> first_catalog.Rows:
    """Return the tables and columns that were there before."""
    columns = {name: before[name][0].keys() for name in before}
    return {name: [{key: row[key] for key in columns[name]} for row in rows[name]] for name in before}


def test_the_first_catalog_can_be_searched_once_it_is_upgraded(first: sa.Engine) -> None:
    database.upgrade(first.url)
    rows = first_catalog.read(first)
    assert [(row["name"], row["number"], row["max_rank"]) for row in rows["search_adapters"]] == [
        ("legal", 8, 64),
        ("legal", 9, 0),
    ]
    words: dict[int, set[str]] = {}
    for row in rows["search_words"]:
        words.setdefault(row["version_id"], set()).add(row["word"])
    assert words[12] == {"legal", "folder"}
    assert {"legal", "good", "strasse", "漢字", "mirror", "llama", "7b", "apache", "causal"} <= words[11]


def test_the_index_of_an_upgraded_catalog_is_the_one_that_the_code_makes(first: sa.Engine) -> None:
    database.upgrade(first.url)
    migrated = first_catalog.read(first)
    with connection_to(first, writes=True) as connection:
        rebuild_index(connection)
    assert first_catalog.read(first) == migrated


def test_what_the_first_catalog_cannot_hold_is_all_that_a_downgrade_drops(first: sa.Engine) -> None:
    before = first_catalog.read(first)
    database.upgrade(first.url)
    with first.begin() as connection:
        events = first_catalog.reflect(connection).tables["events"]
        row = {"at": datetime.now(UTC), "actor": "x", "action": "import", "name": "catalog", "details": {}}
        connection.execute(events.insert().values(row | {"id": 99, "subject": "catalog", "digest": "f" * 64}))
    first_catalog.migrate(first.url, "0001")
    assert first_catalog.read(first) == before


def test_a_migration_that_fails_in_the_middle_leaves_the_old_catalog(first: sa.Engine) -> None:
    # The second migration finds its second table already there, after it has made its first one.
    with first.begin() as connection:
        connection.execute(sa.text("CREATE TABLE search_words (x INTEGER PRIMARY KEY)"))
        connection.execute(sa.text("INSERT INTO search_words VALUES (5)"))
    rows, tables = first_catalog.read(first), describe(first)
    with pytest.raises(CatalogUnusable, match="already exists"):
        database.upgrade(first.url)
    assert database.find_revision(first) == "0001"
    assert (first_catalog.read(first), describe(first)) == (rows, tables)
    with first.begin() as connection:
        connection.execute(sa.text("DROP TABLE search_words"))
    database.upgrade(first.url)
    assert database.find_problems(first) == []


def test_the_first_migration_that_fails_leaves_nothing(tmp_path: Path) -> None:
    # It finds one of its tables already there, after it has made others.
    path = tmp_path / "catalog.db"
    with engine_for(sqlite_url(path)) as engine:
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE versions (id INTEGER)"))
        with pytest.raises(CatalogUnusable, match="table versions already exists"):
            database.upgrade(engine.url)
        tables = set(sa.inspect(engine).get_table_names())
    assert tables - {"alembic_version"} == {"versions"}


def describe(engine: sa.Engine) -> dict[str, object]:
    """Return columns, constraints and indexes of every table, as the database describes them."""
    inspector = sa.inspect(engine)
    return {
        name: [
            [(column["name"], str(column["type"])) for column in inspector.get_columns(name)],
            inspector.get_indexes(name),
            inspector.get_foreign_keys(name),
            sorted(check["sqltext"] for check in inspector.get_check_constraints(name)),
        ]
        for name in inspector.get_table_names()
    }


def test_an_upgraded_catalog_has_the_constraints_of_a_new_one(first: sa.Engine, tmp_path: Path) -> None:
    database.upgrade(first.url)
    upgraded = describe(first)
    if first.dialect.name == "sqlite":
        fresh = sqlite_url(tmp_path / "fresh.db")
        database.upgrade(fresh)
        with engine_for(fresh) as engine:
            assert describe(engine) == upgraded
    accepted = refused_by(first, AFTER_UPGRADE)
    assert accepted == []


AFTER_UPGRADE = {
    "a subject that is none": "INSERT INTO events (id, at, actor, action, subject, name, details) "
    "VALUES (90, '2026-01-01', 'x', 'x', 'model', 'x', '{}')",
    "a word of nothing": "INSERT INTO search_words (version_id, word) VALUES (77, 'x')",
    "a row of the index for a bundle": "INSERT INTO search_adapters (version_id, name, number, max_rank, "
    "weights_bytes, sound, fusable, added_at) VALUES (13, 'x', 1, 1, 1, true, true, '2026-01-01')",
    "the removal of a member": "DELETE FROM versions WHERE id = 11",
}


BASE = "INSERT INTO base_models (id, name, created_at) VALUES (1, 'b', '2026-01-01')"
ENTRY = "INSERT INTO entries (id, kind, name, latest_version, created_at) VALUES "
ALIAS = "INSERT INTO aliases (entry_id, alias, number) VALUES "
VERSION = "INSERT INTO versions (id, entry_id, kind, number, created_at) VALUES "


REFUSED = {
    "a name twice": ENTRY + "(2, 'adapter', 'legal', 0, '2026-01-01')",
    "a name in capitals": ENTRY + "(2, 'adapter', 'Legal', 0, '2026-01-01')",
    "no name": ENTRY + "(2, 'adapter', '', 0, '2026-01-01')",
    "a kind that is none": ENTRY + "(2, 'model', 'other', 0, '2026-01-01')",
    "a version twice": VERSION + "(2, 1, 'adapter', 1, '2026-01-01')",
    "version zero": VERSION + "(2, 1, 'adapter', 0, '2026-01-01')",
    "a bundle's version of an adapter": VERSION + "(2, 1, 'bundle', 2, '2026-01-01')",
    "a version of nothing": VERSION + "(2, 7, 'adapter', 1, '2026-01-01')",
    "a tag in capitals": "INSERT INTO tags (version_id, tag) VALUES (1, 'Good')",
    "an alias of nothing": ALIAS + "(1, 'best', 2)",
}


def test_the_database_itself_refuses_what_the_code_never_writes(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(ENTRY + "(1, 'adapter', 'legal', 1, '2026-01-01')"))
        connection.execute(sa.text(VERSION + "(1, 1, 'adapter', 1, '2026-01-01')"))
    assert refused_by(engine, REFUSED) == []


def refused_by(engine: sa.Engine, statements: dict[str, str]) -> list[str]:
    """Return those of the statements that the database did not refuse."""
    accepted = []
    for what, statement in statements.items():
        with suppress(IntegrityError), engine.begin() as connection:
            connection.execute(sa.text(statement))
            accepted.append(what)
    return accepted
