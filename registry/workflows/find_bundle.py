"""Where the bundle that a command names is."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from ...bundle import Bundle
from ...schemas.bundle import MANIFEST_FILE
from ...schemas.errors import MeteoraError, SourceUnreadable, UsageError
from ...schemas.names import CatalogSource, FolderSource, parse_source
from ..catalog.catalog import Catalog


def find_bundle_folder(
    open_catalog: Callable[[], AbstractContextManager[Catalog]], bundle: str | os.PathLike[str]
) -> Path:
    """Return the folder of a bundle: that folder itself, or where the catalog last saw the bundle.

    A text may name either, a path is always a folder. The catalog is opened only when a catalogued name
    is looked up, so that a folder can be used without one.

    Raises:
        UsageError: it is malformed, or names a repository on the Hub.
        NotInCatalog: no bundle of that name is catalogued.
        SourceUnreadable: there is no bundle in the folder.
    """
    source = parse_source(bundle) if isinstance(bundle, str) else FolderSource(Path(bundle))
    if isinstance(source, FolderSource):
        folder = source.path
    elif isinstance(source, CatalogSource):
        with open_catalog() as catalog:
            folder = catalog.find_bundle(source).path
    else:
        raise UsageError(f"`{bundle}` is a repository on the Hub, expected a folder or a catalogued bundle")
    if not (folder / MANIFEST_FILE).is_file():
        raise SourceUnreadable(
            f"`{folder}` holds no bundle: it has no `{MANIFEST_FILE}`",
            hint="`meteora-registry fuse` makes one",
        )
    return folder


def gate_is_fitted(folder: Path) -> bool:
    """Whether the bundle's gate was fitted; True also where the bundle cannot be opened at all."""
    try:
        return Bundle.open(folder).is_fitted
    except MeteoraError:
        # Whoever asked has already been told what is wrong.
        return True
