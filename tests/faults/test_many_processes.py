"""Eight processes that add the same adapters into one catalog, and the command line beside them."""

from __future__ import annotations

import random
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from meteora_registry.files.digests import hash_file
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.catalog.engine import engine_for, parse_catalog_url, sqlite_url
from meteora_registry.registry.home import Home
from meteora_registry.schemas.names import CatalogSource
from support.faults import run_command
from support.faults_calls import why_unavailable
from support.patience import PATIENCE_SECONDS
from support.small_adapters import make_adapter
from support.store_processes import add_tagged, wait_at
from support.warm import warm_context

PROCESSES, NAMES = 8, 5
# How many adapters there are, and how many of them each process adds.
SAMPLE, SWEEP = (10, 4), (75, 50)
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(params=["sqlite", "postgresql", "pgbouncer"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    """A home without a catalog on SQLite, or with an empty one on PostgreSQL, also through a pooler."""
    if reason := why_unavailable():
        pytest.skip(reason)
    if request.param == "sqlite":
        return Home(tmp_path / "home")
    fixture = {"postgresql": "postgres_catalog_url", "pgbouncer": "pgbouncer_catalog_url"}[request.param]
    return Home(tmp_path / "home", request.getfixturevalue(fixture))


def test_nothing_is_lost_and_nothing_doubled_when_many_add_at_once(
    home: Home, tmp_path: Path, is_sweep: bool
) -> None:
    count, adds = SWEEP if is_sweep else SAMPLE
    contents = [make_adapter(tmp_path / str(number), seed=number, layers=1) for number in range(count)]
    named = [(f"set-{number % NAMES}", str(folder)) for number, folder in enumerate(contents)]
    choice = random.Random(0)
    shares = [choice.sample(named, adds) for _ in range(PROCESSES)]
    context = warm_context()
    barrier = context.Barrier(PROCESSES + 1)
    where = ["--home", str(home.folder), *(["--catalog", home.catalog_url] if home.catalog_url else [])]
    commands = [[*where, "add", folder, "--name", name, "--tag", "seen"] for name, folder in named[:3]]
    with (
        ProcessPoolExecutor(PROCESSES, context, initializer=wait_at, initargs=(barrier,)) as processes,
        ThreadPoolExecutor(len(commands)) as threads,
    ):
        ends = [processes.submit(add_tagged, home, share) for share in shares]
        barrier.wait(PATIENCE_SECONDS)
        outcomes = list(threads.map(run_command, commands))
        made = [version for end in ends for version in end.result()]
    assert [(outcome.code, outcome.stderr) for outcome in outcomes] == [(0, "")] * len(commands)
    made += [
        (name, int(version))
        for verb, name, version in (outcome.stdout.replace("@", " ").split()[:3] for outcome in outcomes)
        if verb == "added:"
    ]
    check_everything(home, {*named[:3], *(pair for share in shares for pair in share)}, made)


def check_everything(home: Home, added: set[tuple[str, str]], made: list[tuple[str, int]]) -> None:
    """Check that each content is one version, made once, that versions have no gaps and blobs are whole."""
    weights = {(name, hash_file(Path(folder) / WEIGHTS)) for name, folder in added}
    with Catalog.open(home) as catalog:
        numbers = {name: catalog.versions_of(name) for name, _ in sorted(added)}
        for versions in numbers.values():
            assert versions == tuple(range(1, len(versions) + 1))
        listed = [(name, number) for name, versions in numbers.items() for number in versions]
        assert sorted(made) == sorted(listed)
        records = [catalog.find(CatalogSource(name, number)) for name, number in listed]
        assert sorted((record.name, record.weights_sha256) for record in records) == sorted(weights)
        assert {record.tags for record in records} == {("seen",)}
    check_the_trail(home, listed)
    stored = {file.sha256 for record in records for file in record.files}
    assert {blob.sha256 for blob in home.store.list_blobs()} == stored
    for digest in stored:
        home.store.check(digest)
    assert home.store.list_leftovers() == []


def check_the_trail(home: Home, listed: list[tuple[str, int]]) -> None:
    """Check that there is one event for each version that was made, and that the events are one chain."""
    with Catalog.open(home) as catalog:
        assert catalog.check_history().problems == ()
    url = parse_catalog_url(home.catalog_url) if home.catalog_url else sqlite_url(home.catalog_file)
    with engine_for(url) as engine, engine.begin() as connection:
        found = connection.execute(sa.text("SELECT name, version FROM events WHERE action = 'add'"))
        assert sorted((row[0], row[1]) for row in found) == sorted(listed)
