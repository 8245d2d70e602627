"""New catalogs on SQLite, copied: the revisions make the same file each time, in a tenth of a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from meteora_registry.registry.catalog import database
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
