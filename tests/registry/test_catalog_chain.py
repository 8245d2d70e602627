"""The history as a chain: what is changed, removed or put in behind the program's back is found."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from meteora_registry.registry.catalog import database
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.catalog.chain import chain
from meteora_registry.registry.catalog.engine import engine_for
from meteora_registry.registry.catalog.models import events
from meteora_registry.registry.cli.main import run
from meteora_registry.registry.home import Home
from meteora_registry.registry.workflows.catalog_files import export_catalog, import_catalog
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.errors import InvalidDocument
from meteora_registry.schemas.names import CatalogSource
from support import first_catalog
from support.catalogued import new_adapter, new_bundle, some_verification
from support.examples import TIMES

LEGAL = CatalogSource("legal")


def fill(catalog: Catalog) -> None:
    """Make changes of every kind, each with an event."""
    adapter = catalog.add_version(new_adapter(), tags=["a"]).version
    catalog.change_tags(LEGAL, add=["b"])
    catalog.set_alias(LEGAL, "champion")
    catalog.register_bundle(new_bundle(adapter, verification=some_verification()))
    catalog.add_version(new_adapter("gone", "2"))
    catalog.remove(CatalogSource("gone"))


def change(catalog: Catalog, *statements: str) -> None:
    """Change the database as someone would who may write to it."""
    with catalog._engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def chain_again(catalog: Catalog) -> None:
    """Compute the whole chain again, as an attacker would who knows how."""
    with catalog._engine.begin() as connection:
        previous = None
        for row in connection.execute(sa.select(events).order_by(events.c.id)).mappings().all():
            previous = chain(previous, row)
            connection.execute(events.update().where(events.c.id == row["id"]).values(digest=previous))


def head_of(catalog: Catalog) -> Digest:
    """Return the digest that the history ends with."""
    head = catalog.history_head()
    assert head is not None
    return head.digest


def test_history_that_only_grew_has_every_earlier_head(shared_catalog: Catalog) -> None:
    assert shared_catalog.history_head() is None
    assert shared_catalog.check_history().problems == ()
    shared_catalog.ensure_identity()
    heads = [head_of(shared_catalog)]
    fill(shared_catalog)
    heads.append(head_of(shared_catalog))
    shared_catalog.record_push(LEGAL, repository="org/legal", commit="a" * 40)
    checks = [shared_catalog.check_history(head) for head in (*heads, head_of(shared_catalog), None)]
    assert [check.problems for check in checks] == [()] * 4
    assert [check.since for check in checks] == [checks[0].events - 1, 1, 0, None]
    assert shared_catalog.history().items[0].digest == head_of(shared_catalog)


# Some event in the middle, and the last one.
MIDDLE = "(SELECT id FROM events WHERE action = 'alias')"
ONES = "1" * 64
LAST = "(SELECT max(id) FROM events)"
COPIED = "at, actor, action, subject, name, version, details, digest"
TAMPERED = {
    "an actor": f"UPDATE events SET actor = 'someone else' WHERE id = {MIDDLE}",
    "a moment": f"UPDATE events SET at = '2020-01-01 00:00:00.000000' WHERE id = {MIDDLE}",
    "an action": f"UPDATE events SET action = 'tags' WHERE id = {MIDDLE}",
    "a subject": f"UPDATE events SET subject = 'store' WHERE id = {MIDDLE}",
    "a name": f"UPDATE events SET name = 'other' WHERE id = {MIDDLE}",
    "a version": f"UPDATE events SET version = 7 WHERE id = {MIDDLE}",
    "a detail": f"UPDATE events SET details = '{{}}' WHERE id = {MIDDLE}",
    "a role": f"UPDATE events SET role = 'meteora_owner' WHERE id = {MIDDLE}",
    "an event removed": f"DELETE FROM events WHERE id = {MIDDLE}",
    "the first event removed": "DELETE FROM events WHERE id = (SELECT min(id) FROM events)",
    "an event put in": f"UPDATE events SET id = id + 1000 WHERE id > {MIDDLE}; "
    f"INSERT INTO events (id, {COPIED}) SELECT id + 1, {COPIED} FROM events WHERE id = {MIDDLE}",
    "two events exchanged": f"UPDATE events SET id = id + 1000 WHERE id = {MIDDLE}",
}


def tampered_in_a_database() -> list[object]:
    """Return each change on one database, by turns; one of values and one of rows on both."""
    return [
        pytest.param(database, statement, id=f"{database}-{name}")
        for place, (name, statement) in enumerate(TAMPERED.items())
        for number, database in enumerate(("sqlite", "postgresql"))
        if TIMES > 1 or place % 2 == number or name in ("a detail", "an event put in")
    ]


@pytest.mark.parametrize(("any_catalog", "statement"), tampered_in_a_database(), indirect=["any_catalog"])
def test_change_of_an_event_breaks_the_chain(any_catalog: Catalog, statement: str) -> None:
    fill(any_catalog)
    head = head_of(any_catalog)
    change(any_catalog, *statement.split("; "))
    assert any(
        "does not follow from the event before it" in each for each in any_catalog.check_history().problems
    )
    # Computing the chain again does not bring the old head back.
    chain_again(any_catalog)
    assert any_catalog.check_history().problems == ()
    (problem,) = any_catalog.check_history(head).problems
    assert problem.startswith(f"the history does not have the head `{head}`")


def test_digest_that_was_changed_is_found_once_for_its_event_and_the_next(any_catalog: Catalog) -> None:
    fill(any_catalog)
    change(any_catalog, f"UPDATE events SET digest = '{'0' * 64}' WHERE id = {MIDDLE}")
    problems = any_catalog.check_history().problems
    assert [each.partition("`)")[0].partition("(")[2] for each in problems] == [
        "`alias` of `legal@1",
        "`add` of `team@1",
    ]


def test_removal_of_the_last_events_is_seen_by_the_head_alone(any_catalog: Catalog) -> None:
    fill(any_catalog)
    head = head_of(any_catalog)
    change(any_catalog, f"DELETE FROM events WHERE id = {LAST}")
    assert any_catalog.check_history().problems == ()
    assert len(any_catalog.check_history(head).problems) == 1


def test_removal_of_the_whole_history_is_seen_by_the_head(any_catalog: Catalog) -> None:
    any_catalog.ensure_identity()
    head = head_of(any_catalog)
    change(any_catalog, "DELETE FROM events")
    assert any_catalog.history_head() is None
    assert len(any_catalog.check_history(head).problems) == 1


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        (
            f"UPDATE adapter_versions SET weights_sha256 = '{ONES}'",
            f"`legal@1` has the content `{ONES}`, but was added with `{new_adapter().facts.weights_sha256}`",
        ),
        (
            f"UPDATE bundle_versions SET manifest_sha256 = '{ONES}'",
            f"`team@1` has the content `{ONES}`, but was added with `{new_bundle().facts.manifest_sha256}`",
        ),
        ("UPDATE versions SET number = 3 WHERE kind = 'bundle'", "`team@3` has no event that added it"),
    ],
    ids=["weights", "manifest", "number"],
)
def test_version_that_is_not_the_one_added_is_found(
    any_catalog: Catalog, statement: str, problem: str
) -> None:
    fill(any_catalog)
    change(any_catalog, statement)
    assert any_catalog.check_history().problems == (problem,)


def test_writers_at_once_make_one_chain(shared_catalog: Catalog) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(
            threads.map(lambda n: shared_catalog.add_version(new_adapter(f"set-{n % 3}", str(n))), range(16))
        )
    check = shared_catalog.check_history()
    assert (check.problems, check.events) == ((), 17)


def test_chain_of_an_upgraded_catalog_is_the_one_that_the_code_makes(
    any_catalog: Catalog,
) -> None:
    url = any_catalog._engine.url
    first_catalog.migrate(url, "0002")
    # The database numbers them, so that later events follow.
    rows = [{key: row[key] for key in row if key != "id"} for row in first_catalog.ROWS["events"]]
    with engine_for(url) as engine, engine.begin() as connection:
        table = first_catalog.reflect(connection).tables["events"]
        connection.execute(table.insert(), rows)
    database.upgrade(url)
    check = any_catalog.check_history()
    assert (check.problems, check.events) == ((), len(rows))
    assert [event.role for event in any_catalog.history().items] == [None] * check.events
    any_catalog.add_version(new_adapter("new"))
    assert any_catalog.check_history().problems == ()


def test_history_moves_with_its_head(any_catalog: Catalog, tmp_path: Path) -> None:
    fill(any_catalog)
    head = head_of(any_catalog)
    export_catalog(any_catalog, tmp_path / "catalog.jsonl")
    with Catalog.open(Home(tmp_path / "other")) as other:
        import_catalog(other, tmp_path / "catalog.jsonl")
        check = other.check_history(head)
        assert (check.problems, check.since) == ((), 1)
        assert [each.role for each in other.history().items[1:]] == [
            each.role for each in any_catalog.history().items
        ]


def test_export_of_a_changed_history_is_not_imported(any_catalog: Catalog, tmp_path: Path) -> None:
    fill(any_catalog)
    change(any_catalog, TAMPERED["an actor"])
    export_catalog(any_catalog, tmp_path / "catalog.jsonl")
    with Catalog.open(Home(tmp_path / "other")) as other:
        with pytest.raises(
            InvalidDocument, match=r"line [0-9]+: the event does not follow from the one before"
        ):
            import_catalog(other, tmp_path / "catalog.jsonl")
        assert other.history().items == ()


def test_head_is_printed_and_checked(
    home: Home, catalog: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["history", "--head"]) == 1
    assert "nothing was ever recorded" in capsys.readouterr().err
    fill(catalog)
    assert run(["history", "--head", "--format", "json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert run(["history", "--head"]) == 0
    head = capsys.readouterr().out.strip()
    assert printed == {"head": head, "events": len(catalog.history().items)}
    catalog.change_tags(LEGAL, add=["later"])
    assert run(["db", "check", "--head", head]) == 0
    assert "as it was at that head, and has 1 events since" in capsys.readouterr().err
    change(catalog, TAMPERED["an actor"])
    assert run(["db", "check"]) == 1
    assert "(`alias` of `legal@1`) does not follow" in capsys.readouterr().out
    chain_again(catalog)
    assert run(["db", "check"]) == 0
    capsys.readouterr()
    assert run(["db", "check", "--head", head]) == 1
    assert capsys.readouterr().out.startswith(f"the history does not have the head `{head}`")


@pytest.mark.parametrize(
    "words",
    [["history", "legal", "--head"], ["history", "--head", "--after", "x"], ["db", "check", "--head", "abc"]],
    ids=["name", "cursor", "no digest"],
)
def test_head_that_cannot_be_is_a_usage_error(
    home: Home, catalog: Catalog, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 2
    assert capsys.readouterr().err
