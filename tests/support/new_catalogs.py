"""New catalogs on SQLite are copies of one, and the statements of all catalogs are compiled once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.engine import URL, Dialect
from sqlalchemy.util import LRUCache

from meteora_registry.registry.catalog import database
from meteora_registry.registry.catalog import engine as engines
from meteora_registry.registry.catalog.engine import sqlite_url


@contextmanager
def copied_catalogs(folder: Path) -> Iterator[None]:
    """Apply the revisions to the first new catalog alone within the block; locks and renames stay."""
    prepared: list[bytes] = []
    apply = database._run_revisions

    def copy_or_apply(url: URL) -> None:
        path = database.sqlite_path(url)
        if path is None or path.exists():
            apply(url)
            return
        if not prepared:
            apply(sqlite_url(folder / "prepared.db"))
            # From memory, since not every user of the tests may look into the folder.
            prepared.append((folder / "prepared.db").read_bytes())
        path.write_bytes(prepared[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "_run_revisions", copy_or_apply)
        yield


@contextmanager
def shared_statements() -> Iterator[None]:
    """Let each statement be compiled once for each kind of database, and not for every engine again.

    An engine lives as long as an open catalog, so the statements of a test would all be compiled anew.
    """
    compiled: LRUCache[Any, Any] = LRUCache(2000)
    create = engines.create_engine

    def create_engine(url: URL, **options: Any) -> Engine:
        engine = create(url, **options)
        engine._compiled_cache = compiled
        return engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "create_engine", create_engine)
        # The dialect is a part of the key, and each engine has its own.
        patch.setattr(Dialect, "__hash__", lambda self: hash(type(self)))
        patch.setattr(Dialect, "__eq__", lambda self, other: type(self) is type(other))
        yield
