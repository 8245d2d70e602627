"""A whole catalog out of one database and into another, and backups of a SQLite one."""

from __future__ import annotations

from pathlib import Path

from ...files.progress import Progress, silent
from ...files.reading import open_regular
from ...files.writing import whole_file, write_errors
from ..catalog.catalog import Catalog
from ..store import Store


def export_catalog(catalog: Catalog, target: Path, *, progress: Progress = silent) -> int:
    """Write a catalog to the new file ``target``, whole or not at all, and return the number of rows.

    Raises:
        UsageError: the target exists.
        SourceUnreadable: it cannot be written.
    """
    with whole_file(target, overwrite=False) as path, write_errors(target), path.open("wb") as file:
        return sum(catalog.write_document(file, progress=progress).values())


def import_catalog(
    catalog: Catalog, source: Path, *, store: Store | None = None, progress: Progress = silent
) -> int:
    """Read a file that ``export_catalog`` wrote, in one transaction, and return the number of rows.

    Args:
        catalog: is empty.
        source: the file.
        store: gets the catalog's mark, so that the catalog that was exported deletes nothing from it.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        AlreadyInCatalog: the catalog is not empty.
        InvalidDocument: the file is of another kind, or was cut off or changed.
        SourceUnreadable: it cannot be read, or is a symbolic link.
        StoreUnavailable: the store cannot be read or written; nothing was imported.
    """
    with open_regular(source) as file:
        counts = catalog.read_document(
            file,
            source.name,
            progress=progress,
            confirm=store.mark if store is not None else None,
        )
    return sum(counts.values())


def backup_catalog(catalog: Catalog, target: Path) -> int:
    """Copy a SQLite catalog, as it was at one moment, to the new file ``target``; return its size in bytes.

    Others may write meanwhile. The copy is checked before it appears.

    Raises:
        UsageError: the target exists, or the catalog is not on SQLite.
        CatalogUnusable: the copy is damaged, as the catalog itself must then be.
        SourceUnreadable: it cannot be written.
    """
    with whole_file(target, overwrite=False) as path, write_errors(target):
        catalog.backup(path)
        return path.stat().st_size
