"""The home of one user or team: the folder of catalog and content store, unless those are elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..schemas.errors import SourceUnreadable
from .secrets import mask_url

if TYPE_CHECKING:
    from .store import Store

HOME_VARIABLE = "METEORA_HOME"
CATALOG_VARIABLE = "METEORA_CATALOG"
STORE_VARIABLE = "METEORA_STORE"
CATALOG_FILE = "catalog.db"


@dataclass(frozen=True, slots=True)
class Home:
    """A folder, and the URLs of a catalog and of a content store elsewhere.

    Without them the catalog is ``catalog.db`` in the folder, and the content store ``blobs``. Without
    ``named`` the folder is below the user's data folder, which is looked up only by those who need it: not
    every account has one.
    """

    named: Path | None
    catalog_url: str | None = None
    store_url: str | None = None

    @property
    def folder(self) -> Path:
        """The folder's absolute path.

        Raises:
            SourceUnreadable: it cannot be found: the account has no home, or the current folder is gone.
        """
        # Imported where it is needed, because every help and every mistyped command loads this module.
        import platformdirs

        try:
            # platformdirs, pathlib and os raise different errors for an account without a home.
            named = self.named or platformdirs.user_data_path("meteora-registry")
            folder = named.expanduser().absolute()
        except (RuntimeError, OSError) as error:
            found = f"`{self.named}`" if self.named else "the folder of catalog and content store"
            raise SourceUnreadable(
                f"{found} cannot be found: this account has no home, or the current folder is gone",
                hint=f"name an absolute path with `--home`, or in {HOME_VARIABLE}",
            ) from error
        return folder

    @property
    def catalog_file(self) -> Path:
        """The default catalog."""
        return self.folder / CATALOG_FILE

    @property
    def store_place(self) -> str:
        """Where the content store is, for people, even if its URL is malformed."""
        return mask_url(self.store_url) if self.store_url else str(self.store)

    @property
    def store(self) -> Store:
        """The content store; one elsewhere is not opened yet, and keeps its copies in ``cache``.

        Raises:
            UsageError: its URL is malformed.
        """
        from .store import RemoteStore, Store

        return RemoteStore(self.store_url, self.folder / "cache") if self.store_url else Store(self.folder)
