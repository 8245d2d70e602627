"""``remove``: versions leave the catalog, then the bytes that nothing else refers to leave the store."""

from __future__ import annotations

from dataclasses import dataclass

from ...schemas.errors import StillInUse, StoreUnavailable
from ...schemas.names import CatalogSource
from ..catalog.catalog import Catalog
from ..catalog.records import Removal
from ..store import Store


@dataclass(frozen=True, slots=True)
class Removed:
    """What left the catalog, and how many bytes that set free; ``kept`` says why they had to stay."""

    removal: Removal
    freed_bytes: int
    kept: StillInUse | StoreUnavailable | None = None


def remove_versions(catalog: Catalog, store: Store, source: CatalogSource) -> Removed:
    """Remove one version, or every version when ``source`` does not say which.

    Of a bundle only the record goes; its folder stays. Killed in between, this leaves bytes that
    nothing refers to, and never a record without its bytes; so does a store that cannot be reached, or
    that other catalogs use too.

    Raises:
        NotInCatalog: there is nothing of that name.
        StillInUse: a bundle has one of them as a member.
    """
    kept: StillInUse | StoreUnavailable | None = None
    try:
        # Before the record is gone: a store without marks is taken over by what refers to all of it.
        store.settle(catalog)
    except (StillInUse, StoreUnavailable) as error:
        kept = error
    removal = catalog.remove(source)
    if not removal.digests or kept is not None:
        return Removed(removal, 0, kept=kept if removal.digests else None)
    try:
        return Removed(removal, store.drop(removal.digests, references=catalog.hold_references))
    except (StillInUse, StoreUnavailable) as error:
        return Removed(removal, 0, kept=error)
