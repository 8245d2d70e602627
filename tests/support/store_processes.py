"""Actions on one store for several processes at the same time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path

from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.home import Home
from meteora_registry.registry.workflows.additions import add_folder
from meteora_registry.registry.workflows.store_upkeep import collect_garbage, remove_versions
from meteora_registry.registry.workspace import Workspace
from meteora_registry.schemas.errors import StillInUse
from meteora_registry.schemas.names import CatalogSource
from support.patience import PATIENCE_SECONDS
from support.small_adapters import make_adapter
from support.workspaces import workspace_of


def add_and_remove(home: Home, start: int) -> None:
    """Add eight adapters, and remove every third again."""
    with Catalog.open(home) as catalog:
        for number in range(start, start + 8):
            adapter = make_adapter(home.folder / f"{start}-{number}", seed=number, layers=1)
            name = f"adapter-{start}-{number}"
            add_folder(workspace_of(catalog, home.store), adapter, name=name)
            if number % 3 == 0:
                remove_versions(workspace_of(catalog, home.store), CatalogSource(name))


def collect(home: Home, stop: Path) -> None:
    """Collect garbage without any grace, until there is a file ``stop``."""
    with Catalog.open(home) as catalog:
        while not stop.exists():
            try:
                collect_garbage(workspace_of(catalog, home.store), grace_seconds=0)
            except StillInUse as error:
                # Before the first record the store does not know the catalog.
                assert "holds nothing of this catalog" in str(error)


def add_same(home: Home, name: str, barrier: Barrier, environment: Mapping[str, str] | None = None) -> None:
    """Add five adapters at the very moment at which another process adds the same."""
    # A process of the fork server has that server's, without what names a service.
    os.environ.update(environment or {})
    with Catalog.open(home) as catalog:
        for number in range(5):
            adapter = make_adapter(home.folder / f"adapter-{number}", seed=number)
            barrier.wait()
            add_folder(workspace_of(catalog, home.store), adapter, name=f"{name}-{number}")


def wait_at(barrier: Barrier) -> None:
    """Let every process of a pool begin together."""
    barrier.wait(PATIENCE_SECONDS)


def add_tagged(home: Home, named: Sequence[tuple[str, str]]) -> list[tuple[str, int]]:
    """Add these folders under these names; return the versions that this process made."""
    made = []
    with Workspace(home).open() as workspace:
        for name, folder in named:
            addition = add_folder(workspace, Path(folder), name=name, tags=["seen"])
            if addition.created:
                made.append((name, addition.version.version))
    return made
