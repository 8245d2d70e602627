from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.home import CATALOG_VARIABLE, HOME_VARIABLE, Home
from support.small_adapters import make_adapter


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """An empty home, also the one that the environment names."""
    folder = tmp_path / "home"
    monkeypatch.setenv(HOME_VARIABLE, str(folder))
    monkeypatch.delenv(CATALOG_VARIABLE, raising=False)
    return Home(folder)


@pytest.fixture(scope="session")
def empty_catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty catalog on SQLite, to be copied: a copy costs nothing, the migrations a tenth of a second."""
    home = Home(tmp_path_factory.mktemp("empty") / "home")
    Catalog.open(home).close()
    return home.catalog_file


@pytest.fixture
def catalog(home: Home, empty_catalog: Path) -> Iterator[Catalog]:
    """The default catalog of that home, empty."""
    home.folder.mkdir()
    shutil.copy(empty_catalog, home.catalog_file)
    with Catalog.open(home) as catalog:
        yield catalog


@pytest.fixture(params=["sqlite", "postgresql"])
def any_catalog(request: pytest.FixtureRequest, home: Home, empty_catalog: Path) -> Iterator[Catalog]:
    """An empty catalog in each database that there may be one in."""
    yield from open_empty(request, home, empty_catalog)


@pytest.fixture(params=["sqlite", "postgresql", "pgbouncer"])
def shared_catalog(request: pytest.FixtureRequest, home: Home, empty_catalog: Path) -> Iterator[Catalog]:
    """An empty catalog in each database, on PostgreSQL also through a pooler, for several writers at once."""
    yield from open_empty(request, home, empty_catalog)


def open_empty(request: pytest.FixtureRequest, home: Home, empty_catalog: Path) -> Iterator[Catalog]:
    """Yield an empty catalog in the database that the fixture's parameter names."""
    if request.param == "sqlite":
        home.folder.mkdir()
        shutil.copy(empty_catalog, home.catalog_file)
    else:
        fixture = {"postgresql": "postgres_catalog_url", "pgbouncer": "pgbouncer_catalog_url"}[request.param]
        home = Home(home.folder, request.getfixturevalue(fixture))
    with Catalog.open(home) as catalog:
        yield catalog


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A small adapter."""
    return make_adapter(tmp_path / "summarise")
