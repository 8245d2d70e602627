from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.home import Home
from support.hub import LoopbackHub
from support.hub_commands import Machine, Workplace, machine, workplace
from support.hub_server import serve
from support.small_adapters import make_adapter

CARD = "---\nlicense: mit\n---\n"


@pytest.fixture(scope="session")
def empty_catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog with nothing in it."""
    home = Home(tmp_path_factory.mktemp("empty"))
    Catalog.open(home).close()
    return home.catalog_file


@pytest.fixture(scope="session")
def shared_hub() -> Iterator[LoopbackHub]:
    """A Hub for all tests."""
    with serve() as hub:
        yield hub


@pytest.fixture(scope="session")
def shared_machine(shared_hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine for all tests."""
    with machine(tmp_path_factory.mktemp("machine"), shared_hub) as made:
        yield made


@pytest.fixture
def hub(shared_hub: LoopbackHub) -> LoopbackHub:
    """The Hub, empty, its record of requests cleared."""
    shared_hub.forget()
    return shared_hub


@pytest.fixture
def here(shared_machine: Machine, hub: LoopbackHub, tmp_path: Path, empty_catalog: Path) -> Workplace:
    """A workplace with an empty home."""
    return workplace(tmp_path / "here", shared_machine, empty_catalog)


@pytest.fixture
def legal(hub: LoopbackHub, tmp_path: Path) -> Path:
    """An adapter, also at ``org/legal``, among files that are never fetched."""
    # Weights of its own, which the machine's cache cannot have from another test.
    folder = make_adapter(tmp_path / "legal", card=CARD, seed=1000 + hub.generation)
    hub.create("org/legal", folder)
    hub.push("org/legal", {"run.py": b"raise SystemExit", "model.bin": b"pickle", "LICENSE": b"MIT"})
    return folder
