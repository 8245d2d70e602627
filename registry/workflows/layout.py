"""``export`` and ``import``: the layout of the MeteoRA authors' own code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...bundle.files import check_target
from ...files.progress import Progress, silent
from ...files.scratch import Purpose, temporary_folder
from ...fuser.official import ImportedMember, OfficialWeights
from ...fuser.write import GivenGate
from ...schemas.bundle import IMPORTED, Fitting
from ...schemas.errors import InvalidDocument, UsageError
from ...schemas.recipe import Recipe
from ..catalog.catalog import Catalog
from ..store import Store
from .add import add_folder
from .fuse import Fusion, fuse
from .prepare import prepare_fuse


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
    progress: Progress = silent,
) -> Fusion:
    """Make a bundle of a file in the authors' layout.

    Each member is cut back to its own rank and catalogued as the plain adapter it is; the gates are
    taken as they are. So the bundle verifies at level ``source`` like any other.

    Raises:
        BundleRefused: the file is no such layout for these members.
        UsageError: the folder is taken, or an option is out of range; nothing was catalogued.
        FuseRefused, AlreadyInCatalog, SourceUnreadable: as ``fuse`` and ``add`` do.
    """
    official = OfficialWeights(weights, members)
    value: dict[str, object] = {"base": base, "top_k": top_k, "temperature": temperature}
    # Everything that can be refused is asked before the members are catalogued.
    check_target(folder)
    _make_recipe(value, [member.name for member in members], members)
    if top_k is not None and top_k > len(members):
        raise UsageError(f"top_k is {top_k}, expected at most the number of members, {len(members)}")
    with temporary_folder(Purpose.IMPORT) as scratch:
        adapters = official.write_adapters(scratch, base=base)
        versions = [add_folder(catalog, store, adapter, base=base).version for adapter in adapters]
    recipe = _make_recipe(value, [str(version.source) for version in versions], members)
    gate = GivenGate(Fitting(method=IMPORTED, data=()), official.gate)
    return fuse(
        catalog, prepare_fuse(catalog, store, recipe), folder, name=name, given_gate=gate, progress=progress
    )


def _make_recipe(
    value: dict[str, object], adapters: Sequence[str], members: Sequence[ImportedMember]
) -> Recipe:
    named = [
        {"adapter": adapter, "name": member.name} for adapter, member in zip(adapters, members, strict=True)
    ]
    try:
        return Recipe.from_value(value | {"members": named}, what="the options")
    except InvalidDocument as error:
        raise UsageError(error.message, hint=error.hint) from error
