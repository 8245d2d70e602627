"""``fuse``: catalogued adapters become one verified bundle on disk, and a version in the catalog.

The bundle is written beside its target and verified there at level ``source``; only then does it move
into place, and the catalog learns of it last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...fuser.member import Member
from ...fuser.plan import DTYPES_BY_NAME, BaseModules, FuseOptions, make_plan
from ...fuser.verify import MemberFiles, verify_bundle
from ...fuser.write import GivenGate, require_no_conflicts, write_bundle
from ...inspection.regular_file import real_path
from ...schemas.names import check_name, parse_catalog_source, suggest_name
from ...schemas.plan import FusePlan
from ...schemas.recipe import Recipe
from ...schemas.verification import Level, VerificationRecord
from ..catalog.catalog import Catalog
from ..catalog.records import AdapterVersion, BundleVersion, NewMember
from ..store import Store
from .add import check_base
from .base import read_base_modules
from .bundle_folder import check_no_adapter_has, register_bundle, write_verified
from .member import open_member
from .steps import Advance, step_of


@dataclass(frozen=True, slots=True)
class Prepared:
    """Members that were opened, their versions in the catalog, and the plan made of them.

    ``renamed`` is what the base calls module paths of old adapters, where the base was at hand.
    """

    versions: tuple[AdapterVersion, ...]
    members: tuple[Member, ...]
    plan: FusePlan
    renamed: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Fusion:
    """What came of a fuse."""

    folder: Path
    plan: FusePlan
    record: VerificationRecord
    version: BundleVersion


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
    options = FuseOptions(
        base=recipe.base,
        base_revision=recipe.base_revision,
        top_k=recipe.top_k,
        temperature=recipe.temperature,
        dtype=DTYPES_BY_NAME[recipe.dtype] if recipe.dtype else None,
        gate=recipe.gate,
        seed=recipe.seed,
        with_experts=recipe.with_experts,
    )
    base_modules = _look_at_base(recipe, members)
    plan = make_plan(members, options, base_modules=base_modules)
    return Prepared(versions, members, plan, base_modules.renamed if base_modules else {})


def _look_at_base(recipe: Recipe, members: Sequence[Member]) -> BaseModules | None:
    if recipe.base is None or not Path(recipe.base).is_dir():
        return None
    paths = {module.path for member in members for module in member.inventory.modules}
    return read_base_modules(Path(recipe.base), sorted(paths))


def fuse(
    catalog: Catalog,
    prepared: Prepared,
    folder: Path,
    *,
    name: str | None = None,
    given_gate: GivenGate | None = None,
    advance: Advance | None = None,
) -> Fusion:
    """Write, verify and register the bundle of a plan.

    Args:
        catalog: where it is registered.
        prepared: members and plan.
        folder: the new folder.
        name: what the catalog calls the bundle, by default made from the folder's name.
        given_gate: used in place of the plan's initialisation.
        advance: told how far it got.

    Raises:
        FuseRefused: the plan has conflicts, or what was written does not verify; nothing is left.
        UsageError: the folder exists and is not empty, unless it is this very bundle, which is then
            catalogued; or the name is malformed.
        AlreadyInCatalog: an adapter has the name.
        SourceUnreadable: the folder cannot be written.
    """
    bundle_name = check_name(name or suggest_name(real_path(folder).name))
    require_no_conflicts(prepared.plan)
    check_no_adapter_has(catalog, bundle_name)
    write = partial(
        write_bundle,
        prepared.plan,
        prepared.members,
        given_gate=given_gate,
        progress=step_of(advance, "writing"),
    )
    record = write_verified(folder, write, lambda written: _verify(written, prepared, advance))
    members = [
        NewMember(member.name, version, member.weights_sha256, member.config_sha256)
        for version, member in zip(prepared.versions, prepared.members, strict=True)
    ]
    version = register_bundle(catalog, folder, bundle_name, members, record)
    return Fusion(folder, prepared.plan, record, version)


def _verify(folder: Path, prepared: Prepared, advance: Advance | None) -> VerificationRecord:
    return verify_bundle(
        folder,
        level=Level.SOURCE,
        sources={m.name: MemberFiles(m.config_path, m.weights_path) for m in prepared.members},
        renamed=prepared.renamed,
        progress=step_of(advance, "verifying"),
    )
