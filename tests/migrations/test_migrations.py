from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy.exc import IntegrityError

from meteora_registry.registry.catalog import schema
from meteora_registry.registry.catalog.engine import engine_for, parse_catalog_url, sqlite_url
from support.postgres import postgres_server, postgres_url

__all__ = ["postgres_server", "postgres_url"]


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """An empty database, brought to the newest schema."""
    if request.param == "sqlite":
        url = sqlite_url(tmp_path / "catalog.db")
    else:
        url = parse_catalog_url(request.getfixturevalue("postgres_url"))
    schema.upgrade(url)
    with engine_for(url) as engine:
        yield engine


def test_migrations_end_at_the_revision_that_the_code_knows() -> None:
    assert ScriptDirectory.from_config(schema.alembic_config()).get_heads() == [schema.HEAD_REVISION]


def test_migrations_give_the_schema_of_the_models(engine: sa.Engine) -> None:
    assert schema.find_revision(engine) == schema.HEAD_REVISION
    assert schema.find_problems(engine) == []


def test_a_schema_that_drifted_is_reported(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE tags ADD COLUMN colour TEXT"))
        connection.execute(sa.text("DROP INDEX ix_tags_tag"))
    problems = schema.find_problems(engine)
    assert len(problems) == 2
    assert all("tags" in problem for problem in problems)


def test_upgrade_of_a_current_catalog_changes_nothing(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.text("INSERT INTO base_models (id, name, created_at) VALUES (1, 'b', '2026-01-01')")
        )
    schema.upgrade(engine.url)
    with engine.begin() as connection:
        assert connection.execute(sa.text("SELECT name FROM base_models")).scalars().all() == ["b"]


def test_downgrade_undoes_every_table(engine: sa.Engine) -> None:
    config = schema.alembic_config()
    with engine_for(engine.url, foreign_keys=False) as bare, bare.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert sa.inspect(engine).get_table_names() == ["alembic_version"]


def test_a_migration_that_fails_leaves_the_revision_before_it(tmp_path: Path) -> None:
    # The first migration finds one of its tables already there, after it has made others.
    path = tmp_path / "catalog.db"
    with engine_for(sqlite_url(path)) as engine:
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE versions (id INTEGER)"))
        with pytest.raises(schema.CatalogUnusable, match="table versions already exists"):
            schema.upgrade(engine.url)
        tables = set(sa.inspect(engine).get_table_names())
    assert tables - {"alembic_version"} == {"versions"}


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
    accepted = []
    for what, statement in REFUSED.items():
        with suppress(IntegrityError), engine.begin() as connection:
            connection.execute(sa.text(statement))
            accepted.append(what)
    assert accepted == []
