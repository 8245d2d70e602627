"""``remove``: versions leave the catalog, then the bytes that nothing else refers to leave the store."""

from __future__ import annotations

from dataclasses import dataclass

from ...schemas.names import CatalogSource
from ..catalog.catalog import Catalog
from ..catalog.records import Removal
from ..store import Store


@dataclass(frozen=True, slots=True)
class Removed:
    """What left the catalog, and how many bytes that set free."""

    removal: Removal
    freed_bytes: int


def remove_versions(catalog: Catalog, store: Store, source: CatalogSource) -> Removed:
    """Remove one version, or every version when ``source`` does not say which.

    Of a bundle only the record goes; its folder stays. Killed in between, this leaves bytes that
    nothing refers to, and never a record without its bytes.

    Raises:
        NotInCatalog: there is nothing of that name.
        StillInUse: a bundle has one of them as a member.
    """
    removal = catalog.remove(source)
    freed_bytes = store.drop(removal.digests, references=catalog.hold_references) if removal.digests else 0
    return Removed(removal, freed_bytes)
