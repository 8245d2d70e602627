"""A whole catalog out of one database and into another, and backups of a SQLite one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...files.progress import Advance, step_of
from ...files.scratch import unfinished_folder
from ...schemas.errors import SourceUnreadable, UsageError
from ..catalog.catalog import Catalog
from ..store import Store, open_regular_file
from ..store.blob import flush_folder


def export_catalog(catalog: Catalog, target: Path, *, advance: Advance | None = None) -> int:
    """The number of rows written to the new file ``target``, which is there whole or not at all.

    Raises:
        UsageError: something is there already.
        SourceUnreadable: it cannot be written.
    """
    with _new_file(target) as path, path.open("wb") as file:
        return sum(catalog.write_document(file, advance=step_of(advance, "exporting")).values())


def import_catalog(
    catalog: Catalog, source: Path, *, store: Store | None = None, advance: Advance | None = None
) -> int:
    """The number of rows read from a file that ``export_catalog`` wrote, all in one transaction.

    Args:
        catalog: is empty.
        source: the file.
        store: gets the catalog's mark, so that the catalog that was exported deletes nothing from it.
        advance: told how many rows were read.

    Raises:
        AlreadyInCatalog: the catalog is not empty.
        InvalidDocument: the file is none of that kind, or was cut off or changed.
        SourceUnreadable: it cannot be read, or is a symbolic link.
        StoreUnavailable: the store cannot be read or written; nothing was imported.
    """
    with open_regular_file(source) as file:
        counts = catalog.read_document(
            file,
            source.name,
            advance=step_of(advance, "importing"),
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
    with _new_file(target) as path:
        catalog.backup(path)
        return path.stat().st_size


@contextmanager
def _new_file(target: Path) -> Iterator[Path]:
    """A file beside ``target`` that takes its place, flushed to the disk, when the block ends."""
    if os.path.lexists(target):
        raise _is_there(target)
    try:
        with unfinished_folder(target) as folder:
            path = folder / target.name
            yield path
            with path.open("rb") as file:
                os.fsync(file.fileno())
            # A link, and no move, for that would replace what has appeared there meanwhile.
            os.link(path, target)
        # Some file systems cannot flush a folder.
        with suppress(OSError):
            flush_folder(target.absolute().parent)
    except FileExistsError as error:
        raise _is_there(target) from error
    except OSError as error:
        if isinstance(error, SourceUnreadable) or error.errno is None:
            raise
        raise SourceUnreadable(f"`{target}` cannot be written: {(error.strerror or '').lower()}") from error


def _is_there(target: Path) -> UsageError:
    return UsageError(f"`{target}` is there already", hint="name a file that is not, or move that one away")
