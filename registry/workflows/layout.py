"""``export`` and ``import``: the layout of the MeteoRA authors' own code."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from ...fuser.official import ImportedMember, OfficialWeights
from ...fuser.write import GivenGate
from ...schemas.bundle import Fitting
from ...schemas.recipe import Recipe, RecipeMember
from ..catalog.catalog import Catalog
from ..store import Store
from .add import add_folder
from .fuse import Fusion, fuse, prepare_fuse
from .steps import Advance

IMPORTED = "imported"


def import_official(
    catalog: Catalog,
    store: Store,
    weights: Path,
    members: Sequence[ImportedMember],
    folder: Path,
    *,
    base: str,
    top_k: int | None = None,
    temperature: float = 1.0,
    name: str | None = None,
    advance: Advance | None = None,
) -> Fusion:
    """Make a bundle of a file in the authors' layout.

    Each member is cut back to its own rank and catalogued as the plain adapter it is; the gates are
    taken as they are. So the bundle verifies at level ``source`` like any other.

    Raises:
        BundleRefused: the file is no such layout for these members.
        FuseRefused, UsageError, AlreadyInCatalog, SourceUnreadable: as ``fuse`` and ``add`` do.
    """
    official = OfficialWeights(weights, members)
    with tempfile.TemporaryDirectory(prefix="meteora-import-") as scratch:
        adapters = official.write_adapters(Path(scratch), base=base)
        versions = [add_folder(catalog, store, adapter, base=base).version for adapter in adapters]
    recipe = Recipe(
        members=tuple(
            RecipeMember(adapter=str(version.source), name=member.name)
            for version, member in zip(versions, members, strict=True)
        ),
        base=base,
        top_k=top_k,
        temperature=temperature,
    )
    gate = GivenGate(Fitting(method=IMPORTED, data=()), official.gate)
    return fuse(
        catalog, prepare_fuse(catalog, store, recipe), folder, name=name, given_gate=gate, advance=advance
    )
