"""The trash: what was removed leaves everything at once, comes back whole, and goes after its days."""

from __future__ import annotations

import dataclasses
import re
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from meteora_registry.registry.catalog import database
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.catalog.engine import transaction
from meteora_registry.registry.catalog.query import AdapterQuery
from meteora_registry.registry.catalog.records import AdapterVersion, BundleVersion
from meteora_registry.registry.cli.main import run
from meteora_registry.registry.face import Registry
from meteora_registry.registry.home import Home
from meteora_registry.registry.workflows.catalog_files import export_catalog, import_catalog
from meteora_registry.registry.workflows.store_upkeep import collect_garbage, measure_store, verify_store
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.errors import (
    AlreadyInCatalog,
    CatalogUnusable,
    InvalidDocument,
    NotInCatalog,
    StillInUse,
    UsageError,
)
from meteora_registry.schemas.names import CatalogSource, parse_catalog_source
from support.catalogued import new_adapter, new_bundle, some_verification
from support.small_adapters import make_adapter

LEGAL, TEAM = CatalogSource("legal"), CatalogSource("team")
EXPIRED = timedelta(seconds=-1)


def same(version: AdapterVersion | BundleVersion) -> AdapterVersion | BundleVersion:
    """Return a version without the number of its row, which a restored one has another of."""
    return dataclasses.replace(version, id=0)


def sound(catalog: Catalog) -> bool:
    """Return whether neither the schema, the index, the trash nor the history has a problem."""
    return database.find_problems(catalog._engine) == [] and catalog.check_history().problems == ()


def test_removed_adapter_comes_back_with_all_that_was_recorded_of_it(any_catalog: Catalog) -> None:
    any_catalog.add_version(new_adapter(content="1", license="mit"), tags=["good", "old"])
    any_catalog.set_alias(LEGAL, "champion")
    any_catalog.edit("legal", note="for contracts", owner="the legal team")
    before = any_catalog.find(LEGAL)
    removal = any_catalog.remove(LEGAL)
    assert removal.expires_at is not None
    assert (any_catalog.list_adapters(), any_catalog.list_names()) == ((), ())
    assert any_catalog.search(AdapterQuery(text="contracts")).items == ()
    assert any_catalog.find_content(before.weights_sha256, before.canonical_config_sha256) == ()
    with pytest.raises(NotInCatalog) as caught:
        any_catalog.find(parse_catalog_source("legal@champion"))
    assert caught.value.hint == "it is in the trash: `meteora-registry restore legal` brings it back"
    assert any_catalog.referenced(removal.digests) == removal.digests
    assert sound(any_catalog)
    assert any_catalog.restore(LEGAL).versions == (before.source,)
    assert same(any_catalog.find(parse_catalog_source("legal@champion"))) == same(before)
    assert [each.name for each in any_catalog.search(AdapterQuery(text="contracts")).items] == ["legal"]
    assert any_catalog.list_trash() == ()
    assert sound(any_catalog)


def test_removed_bundle_comes_back_with_its_removed_members(any_catalog: Catalog) -> None:
    adapters = [any_catalog.add_version(new_adapter(name, name)).version for name in ("legal", "code")]
    any_catalog.register_bundle(new_bundle(*adapters, verification=some_verification()))
    before = any_catalog.find_bundle(TEAM)
    for name in ("team", "legal", "code"):
        any_catalog.remove(CatalogSource(name))
    # Rows take the numbers of those that were removed.
    any_catalog.add_version(new_adapter("other", "other"))
    any_catalog.restore(CatalogSource("code"))
    restored = any_catalog.restore(TEAM)
    assert (restored.versions, restored.members) == ((before.source,), (CatalogSource("legal", 1),))
    assert same(any_catalog.find_bundle(TEAM)) == same(before)
    with pytest.raises(StillInUse):
        any_catalog.remove(LEGAL)
    assert sound(any_catalog)


def test_member_that_is_gone_or_whose_name_is_taken_leaves_the_bundle_without_it(
    any_catalog: Catalog,
) -> None:
    adapters = [any_catalog.add_version(new_adapter(name, name)).version for name in ("legal", "code")]
    any_catalog.register_bundle(new_bundle(*adapters))
    any_catalog.remove(TEAM)
    any_catalog.remove(LEGAL)
    any_catalog.remove(CatalogSource("code"), keep=None)
    any_catalog.register_bundle(new_bundle(name="legal", content="2"))
    restored = any_catalog.restore(TEAM)
    assert (restored.members, restored.unlinked) == ((), ("legal", "code"))
    assert [each.adapter for each in any_catalog.find_bundle(TEAM).members] == [None, None]
    assert [str(each.source) for each in any_catalog.list_trash()] == ["legal@1"]
    assert sound(any_catalog)


def test_name_alone_brings_back_what_its_last_removal_took(any_catalog: Catalog) -> None:
    for content in ("1", "2", "3"):
        any_catalog.add_version(new_adapter(content=content))
    any_catalog.remove(CatalogSource("legal", 1))
    any_catalog.remove(LEGAL)
    assert any_catalog.restore(LEGAL).versions == (CatalogSource("legal", 2), CatalogSource("legal", 3))
    assert any_catalog.restore(LEGAL).versions == (CatalogSource("legal", 1),)
    assert any_catalog.versions_of("legal") == (1, 2, 3)
    assert [each.version for each in any_catalog.search(AdapterQuery()).items] == [3]
    assert sound(any_catalog)


def test_version_is_put_back_before_later_ones_and_their_aliases(any_catalog: Catalog) -> None:
    any_catalog.add_version(new_adapter(content="1"))
    any_catalog.set_alias(LEGAL, "champion")
    any_catalog.remove(LEGAL)
    assert any_catalog.add_version(new_adapter(content="2")).version.version == 2
    any_catalog.set_alias(LEGAL, "champion")
    assert any_catalog.restore(LEGAL).aliases_elsewhere == ("legal@champion",)
    assert any_catalog.find(parse_catalog_source("legal@champion")).version == 2
    assert [each.version for each in any_catalog.list_adapters()] == [2]
    assert sound(any_catalog)


def test_note_of_what_was_removed_is_not_that_of_the_next(any_catalog: Catalog) -> None:
    any_catalog.add_version(new_adapter(content="1"))
    any_catalog.edit("legal", note="first")
    any_catalog.remove(LEGAL)
    assert any_catalog.add_version(new_adapter(content="2")).version.note is None
    any_catalog.edit("legal", owner="second")
    any_catalog.restore(LEGAL)
    assert (any_catalog.find(LEGAL).note, any_catalog.find(LEGAL).owner) == (None, "second")
    assert sound(any_catalog)


def test_restore_refuses_a_taken_name_and_takes_another(any_catalog: Catalog) -> None:
    any_catalog.add_version(new_adapter("team"))
    any_catalog.remove(TEAM)
    any_catalog.register_bundle(new_bundle())
    with pytest.raises(AlreadyInCatalog) as caught:
        any_catalog.restore(TEAM)
    assert str(caught.value) == "the name `team` is taken by a bundle"
    assert caught.value.hint == "restore it under another with `--as NEW`"
    any_catalog.add_version(new_adapter("law", "2"))
    assert any_catalog.restore(TEAM, name="law").versions == (CatalogSource("law", 2),)
    assert sound(any_catalog)


def test_restore_makes_no_second_version_of_one_content(any_catalog: Catalog) -> None:
    any_catalog.add_version(new_adapter())
    any_catalog.remove(LEGAL)
    any_catalog.add_version(new_adapter())
    with pytest.raises(AlreadyInCatalog, match="`legal@2` has this very content"):
        any_catalog.restore(LEGAL)
    assert any_catalog.versions_of("legal") == (2,)
    assert len(any_catalog.list_trash()) == 1


@pytest.mark.parametrize(
    ("source", "name", "error", "message"),
    [
        ("nothing", None, NotInCatalog, "the trash has no `nothing`"),
        ("legal@7", None, NotInCatalog, "the trash has no `legal@7`"),
        ("legal@champion", None, UsageError, "`legal@champion` names an alias"),
        ("legal", "No Name", UsageError, "`No Name` is not a valid name"),
        ("legal", "team:legal", UsageError, "`team:legal` is not a valid name"),
    ],
)
def test_restore_refuses_what_is_not_there(
    catalog: Catalog, source: str, name: str | None, error: type[Exception], message: str
) -> None:
    catalog.add_version(new_adapter())
    catalog.remove(LEGAL)
    with pytest.raises(error, match=re.escape(message)):
        catalog.restore(parse_catalog_source(source), name=name)
    assert len(catalog.list_trash()) == 1


def test_removal_for_good_takes_what_is_in_use_and_in_the_trash(any_catalog: Catalog) -> None:
    for content in ("1", "2"):
        any_catalog.add_version(new_adapter(content=content))
    any_catalog.remove(CatalogSource("legal", 1))
    assert any_catalog.remove(CatalogSource("legal", 2), keep=None).versions == (CatalogSource("legal", 2),)
    assert len(any_catalog.list_trash()) == 1
    removal = any_catalog.remove(LEGAL, keep=None)
    assert removal.versions == (CatalogSource("legal", 1),)
    assert any_catalog.referenced(removal.digests) == set()
    with pytest.raises(NotInCatalog):
        any_catalog.remove(LEGAL, keep=None)
    actions = [(event.action, event.version) for event in any_catalog.history("legal", limit=3).items]
    assert actions == [("purge", 1), ("remove", 2), ("remove", 1)]
    assert sound(any_catalog)


def test_expired_versions_are_purged_and_others_stay(any_catalog: Catalog) -> None:
    for name in ("legal", "code"):
        any_catalog.add_version(new_adapter(name, name))
    any_catalog.remove(LEGAL, keep=EXPIRED)
    any_catalog.remove(CatalogSource("code"))
    expected = any_catalog.find_expired()
    purged = any_catalog.purge()
    assert expected is not None
    assert purged is not None
    assert expected.versions == purged.versions == (CatalogSource("legal", 1),)
    # Both have the same config.
    assert expected.digests == purged.digests - any_catalog.referenced(purged.digests)
    assert any_catalog.purge() is None
    assert [str(each.source) for each in any_catalog.list_trash()] == ["code@1"]
    assert sound(any_catalog)


def test_any_number_of_versions_expires_at_once(catalog: Catalog) -> None:
    catalog.add_version(new_adapter())
    catalog.remove(LEGAL, keep=EXPIRED)
    columns = "kind, name, size_bytes, removed_by, removed_at, expires_at"
    more = (
        f"WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 700) SELECT i, {columns}"
    )
    with transaction(catalog._engine, writes=True) as session:
        session.execute(sa.text(f"INSERT INTO trash (number, {columns}) {more} FROM n, trash"))
        session.execute(
            sa.text(
                "INSERT INTO trash_rows SELECT id, 0, 'adapter_files', '{}', printf('%064x', id) FROM trash "
                "WHERE number > 1"
            )
        )

    # As few as a database that was built so takes in one statement.
    @sa.event.listens_for(catalog._engine, "before_cursor_execute")
    def limit(connection: sa.Connection, *_: object) -> None:
        connection.connection.driver_connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 600)

    expected, purged = catalog.find_expired(), catalog.purge()
    assert expected is not None
    assert purged is not None
    assert expected.versions == purged.versions
    assert expected.digests == purged.digests
    assert len(purged.digests) == len(purged.versions) - 1 + 2
    assert catalog.list_trash() == ()


def test_number_that_a_renamed_version_took_is_refused_as_such(any_catalog: Catalog) -> None:
    """Versions of the same weights may be renamed to each other's name; their configs may differ."""
    other = Digest.of_bytes(b"another config")
    any_catalog.add_version(new_adapter())
    any_catalog.add_version(new_adapter("law", canonical_config_sha256=other))
    any_catalog.remove(LEGAL)
    any_catalog.rename("law", "legal")
    with pytest.raises(AlreadyInCatalog) as caught:
        any_catalog.restore(LEGAL)
    assert caught.value.message == "`legal@1` is another version by now"
    assert caught.value.hint == "restore it under another name with `--as NEW`"
    assert any_catalog.restore(LEGAL, name="old").versions == (CatalogSource("old", 1),)


def test_removal_of_a_name_binds_no_value_for_each_of_its_versions(any_catalog: Catalog) -> None:
    count = 16
    for number in range(count):
        any_catalog.add_version(new_adapter(content=str(number)))
    bound: list[int] = []

    # SQLAlchemy divides an INSERT of many rows itself.
    @sa.event.listens_for(any_catalog._engine, "before_cursor_execute")
    def measure(_connection: object, _cursor: object, statement: str, values: object, *_: object) -> None:
        if not statement.startswith("INSERT") and isinstance(values, dict | tuple):
            bound.append(len(values))

    assert len(any_catalog.remove(LEGAL).versions) == count
    assert 0 < max(bound) < count


def test_trash_moves_with_the_catalog(any_catalog: Catalog, tmp_path: Path) -> None:
    adapter = any_catalog.add_version(new_adapter(), tags=["good"]).version
    any_catalog.register_bundle(new_bundle(adapter, verification=some_verification()))
    any_catalog.edit("team", owner="us")
    before = any_catalog.find_bundle(TEAM)
    any_catalog.remove(TEAM)
    any_catalog.remove(LEGAL)
    export_catalog(any_catalog, tmp_path / "catalog.jsonl")
    with Catalog.open(Home(tmp_path / "new")) as other:
        import_catalog(other, tmp_path / "catalog.jsonl")
        assert sound(other)
        assert other.referenced([adapter.weights_sha256]) == {adapter.weights_sha256}
        assert other.restore(TEAM).members == (adapter.source,)
        assert same(other.find_bundle(TEAM)) == same(before)
        assert other.find(LEGAL).tags == ("good",)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DELETE FROM trash_rows WHERE of_table = 'adapter_versions'", "it has 0 rows of `adapter_versions`"),
        ("UPDATE trash_rows SET of_table = 'events' WHERE of_table = 'tags'", "no row in `events`"),
        ("UPDATE trash_rows SET content = '{}' WHERE of_table = 'tags'", "the columns of `tags` differ"),
        (
            "UPDATE trash_rows SET content = '[]' WHERE of_table = 'tags'",
            "found a JSON list, expected a dict",
        ),
        ("UPDATE trash_rows SET sha256 = NULL", "another digest than its file"),
    ],
    ids=["no facts", "another table", "no values", "a list", "another digest"],
)
def test_damaged_trash_is_reported_and_never_put_back(
    catalog: Catalog, tmp_path: Path, statement: str, message: str
) -> None:
    catalog.add_version(new_adapter(), tags=["good"])
    catalog.remove(LEGAL)
    with transaction(catalog._engine, writes=True) as session:
        session.execute(sa.text(statement))
    (problem,) = database.find_problems(catalog._engine)
    assert problem.startswith("what the trash has of `legal@1` cannot be put back: ")
    assert message in problem
    with pytest.raises(CatalogUnusable, match=re.escape(message)):
        catalog.restore(LEGAL)
    assert catalog.versions_of("legal") == ()
    export_catalog(catalog, tmp_path / "catalog.jsonl")
    with (
        Catalog.open(Home(tmp_path / "new")) as other,
        pytest.raises(InvalidDocument, match=re.escape(message)),
    ):
        import_catalog(other, tmp_path / "catalog.jsonl")


@pytest.mark.parametrize("table", ["adapter_files", "adapter_versions"])
@pytest.mark.parametrize("content", ["{}", "[]"], ids=["no values", "a list"])
def test_store_is_not_read_by_a_damaged_trash(home: Home, tmp_path: Path, table: str, content: str) -> None:
    with Registry(home.folder) as registry:
        registry.add(make_adapter(tmp_path / "legal"))
        registry.remove("legal")
        with transaction(registry.catalog._engine, writes=True) as session:
            values = {"content": content, "of_table": table}
            session.execute(
                sa.text("UPDATE trash_rows SET content = :content WHERE of_table = :of_table"), values
            )
        for look in (measure_store, lambda workspace: list(verify_store(workspace))):
            with pytest.raises(
                CatalogUnusable, match="what the trash has of `legal@1` cannot be put back: "
            ) as caught:
                look(registry)
            assert registry.catalog.check_history().problems == ()
            assert caught.value.hint == "delete it with `meteora-registry remove legal@1 --for-good`"
        registry.remove("legal@1", for_good=True)
        assert list(verify_store(registry)) == []


@pytest.mark.parametrize(
    ("table", "column", "arguments", "moment"),
    [
        ("trash", "expires_at", ["trash"], "2026-13-45 00:00:00.000000"),
        ("trash", "removed_at", ["restore", "legal"], "soon"),
        ("versions", "created_at", ["list"], "2026-13-45 00:00:00.000000"),
        ("versions", "created_at", ["list"], "soon"),
        ("versions", "created_at", ["list"], "5"),
        ("versions", "created_at", ["show", "code"], "5"),
        ("events", "at", ["history"], "soon"),
    ],
    ids=["trash", "restore", "list-month", "list-text", "list-number", "show", "history"],
)
def test_moment_that_is_not_one_is_a_damaged_catalog(
    home: Home,
    capsys: pytest.CaptureFixture[str],
    table: str,
    column: str,
    arguments: list[str],
    moment: str,
) -> None:
    with Catalog.open(home) as catalog:
        catalog.add_version(new_adapter("legal", "1"))
        catalog.add_version(new_adapter("code", "2"))
        catalog.remove(LEGAL)
    with closing(sqlite3.connect(home.catalog_file)) as connection, connection:
        connection.execute(f"UPDATE {table} SET {column} = ?", [moment])
    assert run(["--home", str(home.folder), *arguments]) == 2
    assert capsys.readouterr().err.startswith(
        f"error: the catalog `{home.catalog_file}` has a value that cannot be read: "
    )


def test_exchanged_content_in_the_trash_shows_in_the_history(catalog: Catalog) -> None:
    catalog.add_version(new_adapter(content="1"))
    catalog.remove(LEGAL)
    with transaction(catalog._engine, writes=True) as session:
        wrong = "replace(content, (SELECT weights FROM w), :other)"
        weights = str(new_adapter(content="1").facts.weights_sha256)
        session.execute(
            sa.text(f"WITH w(weights) AS (SELECT :own) UPDATE trash_rows SET content = {wrong}"),
            {"own": weights, "other": "0" * 64},
        )
    (problem,) = catalog.check_history().problems
    assert problem.startswith("`legal@1` has the content")


def test_store_keeps_the_bytes_until_the_trash_lets_them_go(home: Home, tmp_path: Path) -> None:
    with Registry(home.folder) as registry:
        version = registry.add(make_adapter(tmp_path / "legal")).version
        removed = registry.remove("legal")
        assert removed.freed_bytes == 0
        assert collect_garbage(registry).blobs == 0
        usage = measure_store(registry)
        assert (usage.trash_bytes, usage.adapters, usage.reclaimable_bytes) == (version.size_bytes, (), 0)
        assert [each.in_trash for each in verify_store(registry)] == [True, True]
        assert registry.doctor().problems == ()
        registry.restore("legal")
        assert registry.store.path_of(version.weights_sha256).is_file()
        registry.catalog.remove(LEGAL, keep=EXPIRED)
        dry = collect_garbage(registry, dry_run=True)
        done = collect_garbage(registry)
        assert dry == done
        assert (done.blob_bytes, done.expired) == (version.size_bytes, (version.source,))
        assert registry.trash() == ()


def test_missing_bytes_of_a_removed_adapter_are_said_to_be_in_the_trash(home: Home, tmp_path: Path) -> None:
    with Registry(home.folder) as registry:
        version = registry.add(make_adapter(tmp_path / "legal")).version
        registry.remove("legal")
        place = registry.store.place_of(version.weights_sha256)
        place.parent.chmod(0o700)
        place.unlink()
        (problem,) = registry.doctor().problems
        assert "of legal@1 in the trash" in problem.subject
        assert "`meteora-registry remove legal@1 --for-good`" in problem.way_out


def test_commands_lead_from_removal_back(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*words: object, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        assert run(["--home", str(home.folder), *map(str, words)]) == code
        out, err = capsys.readouterr()
        return out, err

    call("add", make_adapter(tmp_path / "legal"))
    shown = call("show", "legal")[0]
    assert re.search(r"^size +4\.6 kB\nin store +4\.9 kB$", shown, re.MULTILINE)
    assert "  4.6 kB  " in call("list")[0]
    out, err = call("remove", "legal")
    assert out == "removed: legal@1\n"
    assert re.fullmatch(
        r"in the trash until \d{4}-\d\d-\d\d: `meteora-registry restore legal@1` brings it back\n", err
    )
    header, row = call("trash")[0].splitlines()
    assert header.split() == ["NAME", "KIND", "IN", "STORE", "REMOVED", "BY", "KEPT", "UNTIL"]
    assert row.split()[:4] == ["legal@1", "adapter", "4.9", "kB"]
    assert call("restore", "legal") == ("restored: legal@1\n", "")
    assert call("trash") == ("", "the trash is empty\n")
    call("remove", "legal", "--keep", "3")
    assert call("remove", "legal", "--for-good") == ("removed: legal@1\n", "4.9 kB set free\n")
    assert call("restore", "legal", code=1)[1].startswith("error: the trash has no `legal`\nhint: ")
    assert "`--keep`" in call("remove", "legal", "--keep", "3", "--for-good", code=2)[1]
    assert call("remove", "legal", "--keep", "0", code=2)[0] == ""
