"""The roles of docs/postgresql.md, made by its own statements: what each may do, and what it may not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from meteora_registry.registry.catalog import database
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.catalog.engine import engine_for, parse_catalog_url
from meteora_registry.registry.cli.main import run
from meteora_registry.registry.home import Home
from meteora_registry.registry.workflows.catalog_files import export_catalog, import_catalog
from meteora_registry.schemas.errors import CatalogUnusable
from meteora_registry.schemas.names import CatalogSource
from support.catalogued import new_adapter, new_bundle, some_verification

PAGE = Path(__file__).parents[2] / "docs" / "postgresql.md"
OWNER, WRITER, READER = "meteora_owner", "alice", "bob"
DENIED = "does not let its role do this: permission denied"


def statements_of(name: str) -> list[str]:
    """Return the SQL of the page's block of that name."""
    found = re.search(rf"<!-- {name}: .*?-->\n```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    bare = re.sub(r"--.*", "", found[1])
    return [statement.strip() for statement in bare.split(";") if statement.strip()]


def execute(url: sa.URL, statements: list[str]) -> None:
    """Execute statements, each by itself."""
    with (
        engine_for(url) as engine,
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
    ):
        for statement in statements:
            connection.exec_driver_sql(statement)


@pytest.fixture(params=["postgres_server", "pgbouncer_server"], ids=["direct", "pgbouncer"])
def server(request: pytest.FixtureRequest, postgres_server: str) -> Iterator[sa.URL]:
    """A server with a catalog that the page's statements have prepared."""
    administrator = parse_catalog_url(postgres_server)
    execute(administrator, statements_of("administrator"))
    url = parse_catalog_url(request.getfixturevalue(request.param)).set(database="meteora")
    try:
        database.upgrade(url.set(username=OWNER))
        execute(url.set(username=OWNER), statements_of("owner"))
        yield url
    finally:
        roles = ("alice", "bob", "meteora_owner", "meteora_writer", "meteora_reader")
        drop = ["DROP DATABASE meteora WITH (FORCE)", *(f"DROP ROLE {role}" for role in roles)]
        execute(administrator, drop)


def open_as(server: sa.URL, role: str, home: Home) -> Catalog:
    """Open the catalog as one of the roles."""
    return Catalog.open(Home(home.folder, server.set(username=role).render_as_string(hide_password=False)))


def test_writer_records_everything_and_is_named_in_every_event(
    server: sa.URL, home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("METEORA_ACTOR", "the director")
    with open_as(server, WRITER, home) as catalog:
        catalog.ensure_identity()
        adapter = catalog.add_version(new_adapter(), tags=["a"]).version
        again = catalog.add_version(new_adapter(content="2", stated_base="org/other")).version
        catalog.change_tags(adapter.source, add=["b"], remove=["a"])
        for version in (adapter, again):
            catalog.set_alias(version.source, "champion")
        catalog.remove_alias("legal", "champion")
        bundle = catalog.register_bundle(new_bundle(adapter, verification=some_verification()))
        catalog.register_bundle(new_bundle(adapter, path=Path("/elsewhere")))
        catalog.record_verification(some_verification(), Path("/elsewhere"))
        member = catalog.add_version(new_adapter("team:legal", claimed_by="org/team@1")).version
        catalog.confirm_origin(
            member.weights_sha256, member.config_sha256, str(member.origin), member.license
        )
        assert catalog.find(member.source).claimed_by is None
        catalog.record_push(adapter.source, repository="org/legal")
        catalog.remove(bundle.source)
        catalog.remove(CatalogSource("legal"))
        events = catalog.history().items
        assert {(event.actor, event.role) for event in events} == {("the director", "alice")}
        assert catalog.check_history().problems == ()
    url = server.set(username=READER).render_as_string(hide_password=False)
    assert run(["--catalog", url, "history", "--limit", "1"]) == 0
    assert "the director (alice)" in capsys.readouterr().out
    assert run(["--catalog", url, "db", "check"]) == 0


FORBIDDEN = {
    "change an event": "UPDATE events SET actor = 'x'",
    "remove an event": "DELETE FROM events",
    "empty the history": "TRUNCATE events",
    "state another role": "INSERT INTO events (at, actor, role, action, subject, name, details, digest) "
    f"VALUES (now(), 'x', 'meteora_owner', 'x', 'store', 'x', '{{}}', '{'0' * 64}')",
    "choose an event's number": "INSERT INTO events (id, at, actor, action, subject, name, details, digest) "
    f"VALUES (1, now(), 'x', 'x', 'store', 'x', '{{}}', '{'0' * 64}')",
    "change what was measured": f"UPDATE adapter_versions SET weights_sha256 = '{'0' * 64}'",
    "change a manifest's digest": f"UPDATE bundle_versions SET manifest_sha256 = '{'0' * 64}'",
    "change a verification": "UPDATE verifications SET outcome = 'pass'",
    "remove a verification": "DELETE FROM verifications",
    "reuse a number": "UPDATE versions SET number = 1",
    "change the schema": "UPDATE alembic_version SET version_num = '0001'",
    "make a table": "CREATE TABLE other (id integer)",
    "drop a table": "DROP TABLE search_words",
}


@pytest.mark.parametrize("server", ["postgres_server"], indirect=True, ids=["direct"])
def test_writer_cannot_change_what_was_recorded(server: sa.URL, home: Home) -> None:
    with open_as(server, WRITER, home) as catalog:
        catalog.register_bundle(new_bundle(catalog.add_version(new_adapter()).version))
        allowed = []
        for what, statement in FORBIDDEN.items():
            try:
                with catalog._engine.begin() as connection:
                    connection.exec_driver_sql(statement)
            except sa.exc.ProgrammingError as error:
                assert getattr(error.orig, "sqlstate", None) == "42501"
            else:
                allowed.append(what)
        assert allowed == []


def test_reader_reads_and_changes_nothing(server: sa.URL, home: Home, tmp_path: Path) -> None:
    with open_as(server, WRITER, home) as catalog:
        catalog.add_version(new_adapter())
    with open_as(server, READER, home) as catalog:
        assert [each.name for each in catalog.list_adapters()] == ["legal"]
        assert catalog.check_history().problems == ()
        export_catalog(catalog, tmp_path / "catalog.jsonl")
        for change in (
            lambda: catalog.change_tags(CatalogSource("legal"), add=["x"]),
            lambda: catalog.remove(CatalogSource("legal")),
            lambda: catalog.add_version(new_adapter(content="2")),
        ):
            with pytest.raises(CatalogUnusable, match=DENIED) as caught:
                change()
            assert caught.value.hint is not None


def test_upgrade_and_import_are_the_owners(server: sa.URL, home: Home, tmp_path: Path) -> None:
    with Catalog.open(Home(tmp_path / "other")) as other:
        other.add_version(new_adapter(content="3"))
        export_catalog(other, tmp_path / "catalog.jsonl")
    with (
        open_as(server, WRITER, home) as catalog,
        pytest.raises(CatalogUnusable, match=DENIED),
    ):
        import_catalog(catalog, tmp_path / "catalog.jsonl")
    with open_as(server, OWNER, home) as catalog:
        import_catalog(catalog, tmp_path / "catalog.jsonl")
        roles = [event.role for event in reversed(catalog.history().items)]
        assert roles == [None] * (len(roles) - 1) + [OWNER]
        assert catalog.check_history().problems == ()
