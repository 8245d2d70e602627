"""Workspaces for tests that opened a catalog and a store of their own."""

from __future__ import annotations

from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.home import Home
from meteora_registry.registry.store import Store
from meteora_registry.registry.workspace import Workspace


def workspace_of(catalog: Catalog, store: Store) -> Workspace:
    """Return a workspace on an open catalog and a store, which stay the test's."""
    workspace = Workspace(Home(None))
    vars(workspace).update(catalog=catalog, store=store)
    return workspace
