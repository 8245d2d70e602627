"""A whole catalog out of one database and into another, and backups of a SQLite one."""

from __future__ import annotations

from pathlib import Path

from ...files.progress import Progress, silent
from ...files.reading import open_regular
from ...files.writing import whole_file, write_errors
from ..catalog.catalog import Catalog
from ..store import Store


def export_catalog(catalog: Catalog, target: Path, *, progress: Progress = silent) -> int:
    """The number of rows written to the new file ``target``, which is there whole or not at all.

    Raises:
        UsageError: something is there already.
        SourceUnreadable: it cannot be written.
    """
    with whole_file(target, overwrite=False) as path, write_errors(target), path.open("wb") as file:
        return sum(catalog.write_document(file, progress=progress).values())


def import_catalog(
    catalog: Catalog, source: Path, *, store: Store | None = None, progress: Progress = silent
) -> int:
    """The number of rows read from a file that ``export_catalog`` wrote, all in one transaction.

    Args:
        catalog: is empty.
        source: the file.
        store: gets the catalog's mark, so that the catalog that was exported deletes nothing from it.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        AlreadyInCatalog: the catalog is not empty.
        InvalidDocument: the file is none of that kind, or was cut off or changed.
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
    """The size in bytes of the new file ``target``, a SQLite catalog as it was at one moment.

    Others may write meanwhile. The copy is checked before it appears.

    Raises:
        UsageError: something is there already, or the catalog is not on SQLite.
        CatalogUnusable: the copy is damaged, as the catalog itself must then be.
        SourceUnreadable: it cannot be written.
    """
    with whole_file(target, overwrite=False) as path, write_errors(target):
        catalog.backup(path)
        return path.stat().st_size
