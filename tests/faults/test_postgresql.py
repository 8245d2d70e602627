"""A catalog on PostgreSQL: the client dies, its session is ended, the server crashes or is restarted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from meteora_registry.registry.catalog import database
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.catalog.engine import engine_for, parse_catalog_url
from meteora_registry.registry.home import Home
from meteora_registry.schemas.names import CatalogSource
from support.faults import Decide, Outcome, kill_at, run_command
from support.faults_calls import why_unavailable
from support.faults_scenes import run_in_this_process
from support.patience import PATIENCE_SECONDS
from support.small_adapters import make_adapter

# What libpq calls to hand the server a message.
MESSAGE = "sendto"
# docs/catalog.md promises either: what failed, or that the outcome of a commit cannot be learned.
FAILED = r"error: the catalog `[^`\n]+` [^\n]+\n(hint: [^\n]+\n)?"
UNKNOWN = (
    r"error: the connection to the catalog `[^`\n]+` was lost while a change was being committed, and "
    r"whether it was kept cannot be learned\n"
    r"hint: look with `meteora-registry history` before you repeat it\n"
)
ONE_MESSAGE = re.compile(f"{FAILED}|{UNKNOWN}")


@pytest.fixture(scope="module")
def home(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home whose catalog is on the server."""
    if reason := why_unavailable():
        pytest.skip(reason)
    url = parse_catalog_url(postgres_server)
    with engine_for(url) as engine, engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    database.upgrade(url)
    return Home(tmp_path_factory.mktemp("postgresql") / "home", postgres_server)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """A new adapter of each name that is asked for."""
    folder = tmp_path_factory.mktemp("adapters")
    count = 0

    def make(name: str) -> Path:
        nonlocal count
        count += 1
        return make_adapter(folder / name, seed=count, layers=1)

    yield make


def add(home: Home, folder: Path, decide: Decide | None = None) -> Outcome:
    """Add an adapter in that home, in a process of its own."""
    return run_command(words_of(home, folder), decide)


def add_again(home: Home, folder: Path) -> None:
    """Give the same command again, to which nothing happens."""
    again = run_in_this_process(words_of(home, folder))
    assert again.code == 0, again


def words_of(home: Home, folder: Path) -> list[str | Path]:
    """Return the words of the command that adds a folder."""
    return ["--home", home.folder, "--catalog", home.catalog_url or "", "add", folder]


@pytest.fixture(scope="module")
def messages(home: Home, adapters: Callable[[str], Path]) -> list[int]:
    """The calls of an ``add`` that hand the server a message, by number."""
    # The first one also records the base.
    outcomes = [add(home, adapters(name)) for name in ("first", "undisturbed")]
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    return [number for number, name in enumerate(outcomes[-1].calls, start=1) if name == MESSAGE]


@contextmanager
def connection_of(home: Home) -> Iterator[sa.Connection]:
    """Yield a connection of our own, in one transaction."""
    with engine_for(parse_catalog_url(home.catalog_url or "")) as engine, engine.begin() as connection:
        yield connection


def checkpointer(home: Home) -> int:
    """Return the process of the server that writes checkpoints, of which each recovery starts another."""
    with connection_of(home) as connection:
        found = connection.scalar(
            sa.text("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
        )
    assert isinstance(found, int)
    return found


def wait_for_server(home: Home, before: set[int]) -> None:
    """Wait until the server answers again, by none of the processes of ``before``."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            if checkpointer(home) not in before:
                return
        except sa.exc.OperationalError:
            pass
        assert time.monotonic() < deadline, "the server did not recover"
        time.sleep(0.1)


def check(home: Home, name: str, *, versions: tuple[tuple[int, ...], ...]) -> None:
    """Check that the catalog's entry of a name is whole, and one of these."""
    with Catalog.open(home) as catalog:
        numbers = catalog.versions_of(name)
        assert numbers in versions
        for number in numbers:
            for file in catalog.find(CatalogSource(name, number)).files:
                home.store.check(file.sha256)
    with connection_of(home) as connection:
        found = connection.execute(
            sa.text("SELECT version FROM events WHERE action = 'add' AND name = :name ORDER BY version"),
            {"name": name},
        )
        assert tuple(row[0] for row in found) == numbers


def check_it_is_said_or_done(outcome: Outcome) -> None:
    """Check that the command succeeded after all, or that one message names the failure."""
    if outcome.code != 0:
        assert outcome.code == 2, outcome
        assert ONE_MESSAGE.fullmatch(outcome.stderr), outcome.stderr


def test_a_client_killed_at_a_message_leaves_nothing_half_recorded(
    home: Home, adapters: Callable[[str], Path], messages: list[int], is_sweep: bool
) -> None:
    for number in messages[:: 1 if is_sweep else 16]:
        name = f"killed-{number}"
        folder = adapters(name)
        assert add(home, folder, kill_at(number)).code == -signal.SIGKILL
        check(home, name, versions=((), (1,)))
        add_again(home, folder)
        check(home, name, versions=((1,),))


def sessions(home: Home) -> list[int]:
    """Return the processes of the server that serve other clients."""
    with connection_of(home) as connection:
        found = connection.execute(
            sa.text(
                "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' "
                "AND pid <> pg_backend_pid()"
            )
        )
        return [row[0] for row in found]


def end_sessions(home: Home) -> set[int]:
    """End the sessions as an administrator would; the server itself goes on."""
    for process in sessions(home):
        with connection_of(home) as connection:
            connection.execute(sa.text("SELECT pg_terminate_backend(:process)"), {"process": process})
    return set()


def crash_session(home: Home) -> set[int]:
    """Kill a session's process, as a defect would: the server notices, ends every session and recovers."""
    before = checkpointer(home)
    killed = sessions(home)[:1]
    for process in killed:
        os.kill(process, signal.SIGKILL)
    return {before} if killed else set()


def restart(home: Home) -> set[int]:
    """Stop the server without letting any session finish, and start it again."""
    postmaster = find_postmaster(home)
    command, user = postmaster.cmdline(), postmaster.uids().real
    folder = Path(command[command.index("-D") + 1])
    postmaster.send_signal(signal.SIGQUIT)
    wait_for_end(postmaster)
    started = ("-l", folder / "log", "-o", f'-h "" -k {folder}', "start")
    subprocess.run(
        [
            Path(command[0]).with_name("pg_ctl"),
            *("-w", "-t", f"{PATIENCE_SECONDS:.0f}", "-s", "-D", folder, *started),
        ],
        user=user,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    return set()


def wait_for_end(process: psutil.Process) -> None:
    """Wait until it has ended, whether or not its parent has taken note of that."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the server did not stop"
            time.sleep(0.01)


def find_postmaster(home: Home) -> psutil.Process:
    """Return the server's first process, the parent of the one that serves this connection."""
    with connection_of(home) as connection:
        process = connection.scalar(sa.text("SELECT pg_backend_pid()"))
        parent = psutil.Process(process).parent()
    assert parent is not None
    return parent


def once_at(number: int, deed: Callable[[], set[int]], gone: set[int]) -> Decide:
    """Do something when the ``number``-th call is about to be made, and keep its answer in ``gone``."""

    def decide(found: int, name: str) -> None:
        if found == number:
            gone.update(deed())

    return decide


@pytest.mark.parametrize(
    ("deed", "every", "sweep_every"),
    [(end_sessions, 25, 2), (crash_session, 25, 5), (restart, 30, 10)],
    ids=["session ended", "server process killed", "server restarted"],
)
def test_a_server_that_fails_at_a_message_loses_nothing_and_the_command_can_be_given_again(
    home: Home,
    adapters: Callable[[str], Path],
    messages: list[int],
    is_sweep: bool,
    deed: Callable[[Home], set[int]],
    every: int,
    sweep_every: int,
) -> None:
    what = deed.__name__.replace("_", "-")
    for number in messages[1 :: sweep_every if is_sweep else every]:
        name = f"{what}-{number}"
        folder = adapters(name)
        gone: set[int] = set()
        outcome = add(home, folder, once_at(number, partial(deed, home), gone))
        check_it_is_said_or_done(outcome)
        wait_for_server(home, gone)
        check(home, name, versions=((1,),) if outcome.code == 0 else ((), (1,)))
        add_again(home, folder)
        check(home, name, versions=((1,),))
