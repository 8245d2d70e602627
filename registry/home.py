"""Where everything of one user or team lies: content store and catalog, unless those are elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import platformdirs

from .store import RemoteStore, Store

HOME_VARIABLE = "METEORA_HOME"
CATALOG_VARIABLE = "METEORA_CATALOG"
STORE_VARIABLE = "METEORA_STORE"
CATALOG_FILE = "catalog.db"


@dataclass(frozen=True, slots=True)
class Home:
    """A folder, and the URLs of a catalog and of a content store elsewhere.

    Without them the catalog is ``catalog.db`` in the folder, and the content store ``blobs``.
    """

    folder: Path
    catalog_url: str | None = None
    store_url: str | None = None

    @classmethod
    def locate(
        cls,
        folder: Path | None = None,
        catalog_url: str | None = None,
        store_url: str | None = None,
        *,
        environment: Mapping[str, str] = os.environ,
    ) -> Self:
        """The home that the arguments name, else the environment, else the user's data folder.

        Nothing is read or created. An empty variable counts as not set.
        """
        named = folder or environment.get(HOME_VARIABLE) or platformdirs.user_data_path("meteora-registry")
        return cls(
            Path(named).expanduser().absolute(),
            catalog_url or environment.get(CATALOG_VARIABLE) or None,
            store_url or environment.get(STORE_VARIABLE) or None,
        )

    @property
    def catalog_file(self) -> Path:
        """The default catalog."""
        return self.folder / CATALOG_FILE

    @property
    def store(self) -> Store:
        """The content store; one elsewhere is not opened yet, and keeps its copies in ``cache``.

        Raises:
            UsageError: its URL is malformed.
        """
        return RemoteStore(self.store_url, self.folder / "cache") if self.store_url else Store(self.folder)
