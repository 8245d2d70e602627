"""The catalog and the content store of one home, with the Hub, as the workflows use them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ..schemas.errors import MeteoraError
from .closing import Closing

if TYPE_CHECKING:
    from .catalog.catalog import Catalog
    from .catalog.records import LatestVersions
    from .home import Home
    from .hub.client import Hub
    from .store import Store


StrPath = str | os.PathLike[str]


def path_or_none(given: StrPath | None) -> Path | None:
    """Return a path that may be left out as a ``Path``."""
    return None if given is None else Path(given)


class Workspace(Closing):
    """A home whose catalog, store and Hub are opened when they are first used.

    So a bundle in a folder can be checked where there is no catalog, and a local job does not load the Hub's
    client.
    """

    def __init__(self, home: Home) -> None:
        self.home = home

    @cached_property
    def catalog(self) -> Catalog:
        """The open catalog.

        Raises:
            CatalogUnusable: it cannot be opened, is damaged, or has the schema of another version.
        """
        from .catalog.catalog import Catalog

        return Catalog.open(self.home)

    @cached_property
    def store(self) -> Store:
        """The content store.

        Raises:
            UsageError: its URL is malformed.
        """
        return self.home.store

    @cached_property
    def hub(self) -> Hub:
        """The client of the Hub that HF_ENDPOINT names.

        Raises:
            UsageError: a variable of huggingface_hub has a value that it does not accept.
        """
        from .hub.client import Hub

        return Hub()

    def open(self) -> Self:
        """Open the catalog now, so that a job for several adapters does not fail once for each.

        Raises:
            CatalogUnusable: as ``catalog``.
        """
        self.catalog  # noqa: B018 - a property that opens it
        return self

    def list_latest(self) -> LatestVersions:
        """Return the latest version of every adapter and of every bundle, each in one line.

        Raises:
            CatalogUnusable: as ``catalog``.
        """
        if self.home.catalog_url is None and self.home.catalog_file.exists():
            from .catalog.latest import list_file

            return list_file(self.home.catalog_file)
        return self.catalog.list_latest()

    def close(self) -> None:
        """Close the catalog; the next use opens it again."""
        catalog = self.__dict__.pop("catalog", None)
        if catalog is not None:
            catalog.close()

    def note(self, record: Callable[[Catalog], object]) -> None:
        """Record something that is already done; a failure is only a warning, so the result is not lost."""
        try:
            record(self.catalog)
        except (MeteoraError, OSError) as error:
            self.warn(f"not noted in the catalog: {error}")

    def warn(self, message: str) -> None:
        """Report what did not stop a job; the command line prints it instead."""
        warnings.warn(message, RuntimeWarning, stacklevel=4)
