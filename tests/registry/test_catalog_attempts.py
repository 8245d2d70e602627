"""Transient failures are tried again, and a change is made once, whenever the connection is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from meteora_registry.registry.catalog import attempts, database, database_errors
from meteora_registry.registry.catalog import engine as engines
from meteora_registry.registry.catalog.attempts import attempt
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.catalog.engine import parse_catalog_url, transaction
from meteora_registry.registry.catalog.events import record_event
from meteora_registry.registry.catalog.query import AdapterQuery
from meteora_registry.registry.home import Home
from meteora_registry.schemas.errors import CatalogUnusable
from support import warm
from support.catalogued import new_adapter
from support.postgres_proxy import Proxy, proxy_to
from support.program import PROGRAM
from support.small_adapters import make_adapter

# As it goes over the wire; READ COMMITTED goes there too.
COMMIT = b"COMMIT\0"


@pytest.fixture
def proxy(postgres_catalog_url: str) -> Iterator[Proxy]:
    """A way to an empty catalog on PostgreSQL that can be cut."""
    with proxy_to(postgres_catalog_url) as proxy:
        yield proxy


@pytest.fixture
def catalog(home: Home, proxy: Proxy) -> Iterator[Catalog]:
    """That catalog, with one version in it."""
    with Catalog.open(Home(home.folder, proxy.url.render_as_string(hide_password=False))) as catalog:
        catalog.add_version(new_adapter(content="0"))
        yield catalog


def added(catalog: Catalog) -> int:
    """Check that each version was added once, and return their number."""
    numbers = catalog.versions_of("legal")
    events = [event for event in catalog.history("legal", limit=1000).items if event.action == "add"]
    assert sorted(event.version or 0 for event in events) == list(numbers)
    assert numbers == tuple(range(1, len(numbers) + 1))
    return len(numbers)


@pytest.mark.parametrize("where", [b"INSERT INTO versions", b"pg_advisory_xact_lock", COMMIT])
def test_a_change_whose_connection_was_lost_before_its_commit_is_made_again(
    catalog: Catalog, proxy: Proxy, where: bytes
) -> None:
    proxy.lose_before = where
    version = catalog.add_version(new_adapter(content="1")).version
    assert proxy.lose_before is None
    assert (version.version, added(catalog)) == (2, 2)


def test_a_change_whose_connection_was_lost_in_its_commit_is_not_made_twice(
    catalog: Catalog, proxy: Proxy
) -> None:
    proxy.lose_after = COMMIT
    # Done again, it would find its own content there.
    assert catalog.add_version(new_adapter(content="1")).created
    assert proxy.lose_after is None
    assert added(catalog) == 2
    proxy.lose_after = COMMIT
    tries = []

    def work(session: Session) -> int:
        tries.append(session)
        record_event(session, "tags", "adapter", "legal", 1)
        return len(tries)

    assert attempt(catalog._engine, work, writes=True) == 1
    assert proxy.lose_after is None
    assert [event.action for event in catalog.history("legal").items].count("tags") == 1


@pytest.mark.parametrize("number", ["(SELECT CAST(xmin AS text) FROM base_models)", "'999999999'"])
def test_a_change_whose_number_the_server_forgot_in_a_crash_is_made_again(
    catalog: Catalog, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    # Since then another transaction was committed under that number, or none has got it.
    mark = attempts._MARK.text.replace("CAST(pg_current_xact_id_if_assigned() AS text)", number)
    monkeypatch.setattr(attempts, "_MARK", sa.text(mark))
    proxy.lose_before = COMMIT
    version = catalog.add_version(new_adapter(content="1")).version
    assert proxy.lose_before is None
    assert (version.version, added(catalog)) == (2, 2)


def test_a_command_whose_connection_was_lost_shows_nothing_that_the_driver_logs(
    catalog: Catalog, proxy: Proxy, home: Home, tmp_path: Path
) -> None:
    # Several rows at once, of which the driver logs that it could not finish them.
    proxy.lose_before = b"INSERT INTO adapter_files"
    url = proxy.url.render_as_string(hide_password=False)
    adapter = make_adapter(tmp_path / "new")
    done = warm.run([PROGRAM, "--catalog", url, "add", adapter], capture_output=True, text=True)
    assert proxy.lose_before is None
    assert (done.returncode, done.stderr) == (0, "")


def test_a_commit_of_which_nobody_can_be_asked_is_said_to_be_unknown(
    catalog: Catalog, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "_FIRST_PAUSE_SECONDS", 0.001)
    proxy.lose_after, proxy.refuse = COMMIT, 1000
    with pytest.raises(CatalogUnusable) as caught:
        catalog.add_version(new_adapter(content="1"))
    url = engines.describe_url(catalog._engine.url)
    assert str(caught.value) == (
        f"the connection to the catalog `{url}` was lost while a change was being committed, and whether it "
        "was kept cannot be learned"
    )
    assert caught.value.hint == "look with `meteora-registry history` before you repeat it"
    proxy.refuse = 0
    assert added(catalog) == 2


def test_a_server_that_comes_back_is_waited_for_and_one_that_does_not_is_given_up(
    catalog: Catalog, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "_FIRST_PAUSE_SECONDS", 0.001)
    proxy.lose_before, proxy.refuse = b"INSERT INTO versions", 3
    assert catalog.add_version(new_adapter(content="1")).version.version == 2
    proxy.lose_before, proxy.refuse = b"INSERT INTO versions", 1000
    before = proxy.connections
    with pytest.raises(CatalogUnusable, match="the catalog `postgresql"):
        catalog.add_version(new_adapter(content="2"))
    assert proxy.connections - before == attempts.ATTEMPTS - 1
    proxy.refuse = 0
    assert added(catalog) == 2


def test_a_connection_that_died_while_nobody_used_it_is_replaced(catalog: Catalog, proxy: Proxy) -> None:
    with catalog._engine.connect() as connection:
        own = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        with catalog._engine.connect() as other:
            other.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                f"WHERE datname = current_database() AND pid NOT IN ({own}, pg_backend_pid())"
            )
    catalog._engine.pool.status()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: catalog.versions_of("legal"), range(8))) == [(1,)] * 8


CONFLICTS = {"serialization failure": "40001", "deadlock": "40P01"}


@pytest.mark.parametrize("code", CONFLICTS.values(), ids=CONFLICTS)
@pytest.mark.parametrize(("times", "succeeds"), [(3, True), (100, False)], ids=["passing", "lasting"])
def test_a_conflict_is_tried_again_a_few_times(
    catalog: Catalog, code: str, times: int, monkeypatch: pytest.MonkeyPatch, *, succeeds: bool
) -> None:
    monkeypatch.setattr(attempts, "_FIRST_PAUSE_SECONDS", 0.001)
    with catalog._engine.begin() as connection:
        # A sequence does not go back with the transaction, so it counts the tries.
        connection.exec_driver_sql("CREATE SEQUENCE tries")
        connection.exec_driver_sql(
            "CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF nextval('tries') <= {times} THEN "
            f"RAISE EXCEPTION 'conflict' USING ERRCODE = '{code}'; END IF; RETURN NEW; END $$"
        )
        connection.exec_driver_sql(
            "CREATE TRIGGER conflict BEFORE INSERT ON versions FOR EACH ROW EXECUTE FUNCTION conflict()"
        )
    if succeeds:
        # What is given as an iterator is there for every try.
        tags = iter(["a", "b"])
        assert catalog.add_version(new_adapter(content="1"), tags=tags).version.tags == ("a", "b")
    else:
        with pytest.raises(CatalogUnusable, match="failed: conflict"):
            catalog.add_version(new_adapter(content="1"))
    assert added(catalog) == 1 + succeeds
    with catalog._engine.connect() as connection:
        tries = connection.exec_driver_sql("SELECT last_value FROM tries").scalar()
    assert tries == (times + 1 if succeeds else attempts.ATTEMPTS)


def test_what_is_wrong_for_good_is_not_tried_again(catalog: Catalog) -> None:
    tries = []

    def work(session: Session) -> None:
        tries.append(session)
        session.execute(sa.text("SELECT no_such_function()"))

    with pytest.raises(CatalogUnusable, match="no_such_function"):
        attempt(catalog._engine, work)
    assert len(tries) == 1


def test_a_writer_that_waits_too_long_is_told_that_the_catalog_is_busy(
    home: Home, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "BUSY_TIMEOUT_SECONDS", 0.2)
    url = proxy.url.render_as_string(hide_password=False)
    with (
        Catalog.open(Home(home.folder, url)) as catalog,
        transaction(catalog._engine, writes=True),
        pytest.raises(CatalogUnusable, match="stayed busy: another process has been writing to it"),
    ):
        catalog.add_version(new_adapter())


def test_a_statement_that_takes_too_long_is_ended(
    home: Home, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (engines, database_errors):
        monkeypatch.setattr(module, "STATEMENT_TIMEOUT_SECONDS", 0.2)
    url = proxy.url.render_as_string(hide_password=False)
    # Not a catalog: on a busy machine any statement of its opening may take as long.
    with (
        engines.engine_for(parse_catalog_url(url)) as engine,
        pytest.raises(CatalogUnusable, match=r"took longer than 0\.2 seconds for one statement"),
    ):
        attempt(engine, lambda session: session.execute(sa.text("SELECT pg_sleep(3000)")))
    # An option in the URL itself takes precedence.
    stated = f"{url}&options=-c%20statement_timeout%3D77000"
    with Catalog.open(Home(home.folder, stated)) as catalog, catalog._engine.connect() as connection:
        shown = [
            connection.exec_driver_sql(f"SHOW {name}").scalar()
            for name in ("statement_timeout", "lock_timeout")
        ]
    assert shown == ["77s", "1min"]


def test_a_commit_that_sqlite_refuses_is_no_success(tmp_path: Path) -> None:
    with Catalog.open(Home(tmp_path)) as catalog:

        def work(session: Session) -> None:
            session.execute(sa.text("PRAGMA defer_foreign_keys = ON"))
            session.execute(sa.text("INSERT INTO tags (version_id, tag) VALUES (99, 'x')"))

        with pytest.raises(CatalogUnusable, match="FOREIGN KEY constraint failed"):
            attempt(catalog._engine, work, writes=True)
        assert database.find_problems(catalog._engine) == []


def test_threads_share_one_catalog(shared_catalog: Catalog) -> None:
    problems = []

    def use(number: int) -> None:
        try:
            version = shared_catalog.add_version(new_adapter(content=str(number))).version
            shared_catalog.change_tags(version.source, add=[f"t{number}"])
            assert shared_catalog.find(version.source).tags == (f"t{number}",)
            shared_catalog.search(AdapterQuery(tags=(f"t{number}",), all_versions=True))
        except Exception as error:  # noqa: BLE001 - any failure in a thread has to reach the test
            problems.append(error)

    # More than the pool has connections, so that some wait for one.
    threads = [threading.Thread(target=use, args=(number,)) for number in range(17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert added(shared_catalog) == len(threads)
