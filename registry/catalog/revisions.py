"""The revision of a catalog's schema, and the one that this version needs; without SQLAlchemy or alembic."""

from __future__ import annotations

import re
from pathlib import Path

import meteora_registry

from ...schemas.errors import CatalogUnusable

MIGRATIONS_FOLDER = Path(meteora_registry.__file__).parent / "migrations"
# The number in the name of the newest migration, so that no command needs alembic to know it.
HEAD_REVISION = max(path.name[:4] for path in MIGRATIONS_FOLDER.glob("versions/[0-9]*.py"))
_REVISION = re.compile(r"[0-9]{4}")


def check_revision(found: str | None, catalog: str) -> None:
    """Check that a catalog has the schema of this version; without one, ``found`` is None.

    Raises:
        CatalogUnusable: no catalog, an older or a newer schema; the hint names the way out.
    """
    if found == HEAD_REVISION:
        return
    if found is None:
        raise CatalogUnusable(
            f"there is no catalog at `{catalog}`", hint="create it with `meteora-registry db upgrade`"
        )
    if _REVISION.fullmatch(found) and found < HEAD_REVISION:
        raise CatalogUnusable(
            f"the catalog `{catalog}` has the schema `{found}`, this version needs `{HEAD_REVISION}`",
            hint="upgrade it with `meteora-registry db upgrade`",
        )
    raise newer_than_known(catalog, found)


def newer_than_known(catalog: str, found: str) -> CatalogUnusable:
    """Return the error about a catalog whose schema a later version made."""
    return CatalogUnusable(
        f"the catalog `{catalog}` has the schema `{found}`, this version knows `{HEAD_REVISION}` at most",
        hint="upgrade meteora-registry",
    )
