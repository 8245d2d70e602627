"""What a fuse would do: its members opened and the plan made of them. Nothing is written; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...fuser.fuse_member import Member, MemberFiles
from ...fuser.planning import BaseModules, make_plan
from ...schemas.names import parse_catalog_source
from ...schemas.plan import FusePlan
from ...schemas.recipe import Recipe
from ..catalog.catalog import Catalog
from ..catalog.records import AdapterVersion
from ..store import Store
from .add import check_base
from .base import read_base_modules
from .member import open_member


@dataclass(frozen=True, slots=True)
class Prepared:
    """Members that were opened, their versions in the catalog, and the plan made of them.

    ``renamed`` is what the base calls module paths of old adapters, where the base was at hand.
    """

    versions: tuple[AdapterVersion, ...]
    members: tuple[Member, ...]
    plan: FusePlan
    renamed: Mapping[str, str]

    @property
    def sources(self) -> dict[str, MemberFiles]:
        """The members' own files, by member name."""
        return {each.name: MemberFiles(each.config_path, each.weights_path) for each in self.members}


def prepare_fuse(catalog: Catalog, store: Store, recipe: Recipe) -> Prepared:
    """Open the members of a recipe and make the plan; nothing is written.

    Where the recipe's base is a folder of this machine, every module is looked up there.

    Raises:
        UsageError: a member's name or the base is malformed.
        NotInCatalog: a member is not catalogued.
        StoreDamaged: a member's bytes are missing or changed.
        AdapterRefused: a member has no LoRA factors.
        SourceUnreadable: the base's folder has no config that transformers can read.
    """
    if recipe.base is not None:
        check_base(recipe.base)
    versions = tuple(catalog.find(parse_catalog_source(entry.adapter)) for entry in recipe.members)
    members = tuple(
        open_member(store, version, name=entry.name)
        for version, entry in zip(versions, recipe.members, strict=True)
    )
    return plan_members(members, recipe, versions=versions)


def plan_members(
    members: Sequence[Member], recipe: Recipe, *, versions: Sequence[AdapterVersion] = ()
) -> Prepared:
    """Make the plan for opened members; ``versions`` are theirs in the catalog, where they have any.

    Raises:
        SourceUnreadable: the base's folder has no config that transformers can read.
    """
    base_modules = _look_at_base(recipe, members)
    plan = make_plan(members, recipe, base_modules=base_modules)
    renamed = base_modules.renamed if base_modules else {}
    return Prepared(tuple(versions), tuple(members), plan, renamed)


def _look_at_base(recipe: Recipe, members: Sequence[Member]) -> BaseModules | None:
    if recipe.base is None or not Path(recipe.base).is_dir():
        return None
    paths = {module.path for member in members for module in member.inventory.modules}
    return read_base_modules(Path(recipe.base), sorted(paths))
