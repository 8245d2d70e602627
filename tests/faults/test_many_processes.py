"""Eight processes that add the same adapters into one catalog, and the command line beside them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from meteora_registry.files.digests import hash_file
from meteora_registry.registry.catalog import database
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.catalog.engine import engine_for, parse_catalog_url, sqlite_url
from meteora_registry.registry.home import Home
from meteora_registry.schemas.names import CatalogSource
from support.small_adapters import make_adapter

PROCESSES, ADDS = 8, 50
CONTENTS, NAMES = 75, 5
WEIGHTS = "adapter_model.safetensors"

ADD = """
import json, sys
from pathlib import Path
from meteora_registry.registry.home import Home
from meteora_registry.registry.workflows.additions import add_folder
from meteora_registry.registry.workspace import Workspace

home = Home(Path(sys.argv[1]), sys.argv[2] or None)
work = json.loads(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
made = []
with Workspace(home).open() as workspace:
    for name, folder in work:
        addition = add_folder(workspace, Path(folder), name=name, tags=["seen"])
        if addition.created:
            made.append([name, addition.version.version])
print(json.dumps(made))
"""
COMMAND = "from meteora_registry.registry.cli.main import main; main()"


@pytest.fixture(params=["sqlite", "postgresql"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    """A home without a catalog on SQLite, or with an empty one on PostgreSQL."""
    if request.param == "sqlite":
        return Home(tmp_path / "home")
    url = request.getfixturevalue("postgres_url")
    database.upgrade(parse_catalog_url(url))
    return Home(tmp_path / "home", url)


def start(*arguments: str) -> subprocess.Popen[str]:
    """Return a Python process whose streams are ours."""
    return subprocess.Popen(
        [sys.executable, "-c", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_nothing_is_lost_and_nothing_doubled_when_many_add_at_once(home: Home, tmp_path: Path) -> None:
    contents = [make_adapter(tmp_path / str(number), seed=number, layers=1) for number in range(CONTENTS)]
    named = [(f"set-{number % NAMES}", str(folder)) for number, folder in enumerate(contents)]
    choice = random.Random(0)
    shares = [choice.sample(named, ADDS) for _ in range(PROCESSES)]
    processes = [start(ADD, str(home.folder), home.catalog_url or "", json.dumps(share)) for share in shares]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    where = ["--home", str(home.folder), *(["--catalog", home.catalog_url] if home.catalog_url else [])]
    commands = [
        start(COMMAND, *where, "add", folder, "--name", name, "--tag", "seen") for name, folder in named[:3]
    ]
    ends = [process.communicate() for process in processes]
    assert [stderr for _, stderr in ends] == [""] * PROCESSES
    said = [command.communicate() for command in commands]
    assert [(command.returncode, stderr) for command, (_, stderr) in zip(commands, said, strict=True)] == [
        (0, "")
    ] * len(commands)
    made = [tuple(each) for stdout, _ in ends for each in json.loads(stdout)]
    made += [
        (name, int(version))
        for verb, name, version in (stdout.replace("@", " ").split()[:3] for stdout, _ in said)
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
    """Check that there is one event for each version that was made."""
    url = parse_catalog_url(home.catalog_url) if home.catalog_url else sqlite_url(home.catalog_file)
    with engine_for(url) as engine, engine.begin() as connection:
        found = connection.execute(sa.text("SELECT name, version FROM events WHERE action = 'add'"))
        assert sorted((row[0], row[1]) for row in found) == sorted(listed)
