"""Members of a fuse straight from adapter folders, without a catalog; bundles made of them, and gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from meteora_registry.bundle import Bundle
from meteora_registry.fuser.bundle_writer import write_bundle
from meteora_registry.fuser.fuse_member import Member, MemberFiles
from meteora_registry.fuser.planning import BaseModules, make_plan
from meteora_registry.fuser.refit import NewGates
from meteora_registry.inspection.adapter import inspect_adapter
from meteora_registry.schemas import bundle as names
from meteora_registry.schemas.bundle import Fitting, FittingData, Gate
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.gate_choices import Scope
from meteora_registry.schemas.manifest import Origin
from meteora_registry.schemas.plan import FusePlan
from meteora_registry.schemas.recipe import Recipe

BASE = "org/base"


def read_member(folder: Path, name: str | None = None, *, base: str | None = BASE) -> Member:
    """Return the adapter in a folder as a member, under the folder's name by default."""
    sound = inspect_adapter(folder).require_sound(f"`{folder}` is broken")
    return Member.of(
        sound.require_factors(f"`{folder}` is {sound.verdict}"),
        name=name or folder.name,
        adapter=name or folder.name,
        config_path=folder / names.CONFIG_FILE,
        weights_path=folder / names.WEIGHTS_FILE,
        origin=Origin(kind="folder", location=folder.name, commit=None),
        license=sound.facts.license,
        base=base,
        spelled_base=base,
    )


def read_members(folders: Mapping[str, Path]) -> list[Member]:
    """Return members by name, in the order given."""
    return [read_member(folder, name) for name, folder in folders.items()]


def plan_of(
    members: Sequence[Member], *, base_modules: BaseModules | None = None, **options: object
) -> FusePlan:
    """Return the plan for these members and a recipe's options."""
    recipe = Recipe.state([{"adapter": member.adapter} for member in members], options)
    return make_plan(members, recipe, base_modules=base_modules)


def fuse(members: Sequence[Member], folder: Path, **options: object) -> Path:
    """Write a bundle of these members, unverified, into a new folder."""
    folder.mkdir(parents=True)
    write_bundle(plan_of(members, **options), members, folder)
    return folder


def files_of(members: Sequence[Member]) -> dict[str, MemberFiles]:
    """Return where verification finds each member's own files."""
    return {member.name: MemberFiles(member.config_path, member.weights_path) for member in members}


def draw_gates(
    bundle: Bundle, sources: dict[str, str], *, scope: Scope = "token", bias: bool = True
) -> NewGates:
    """Return random gates for a bundle, marked as fitted by hand; modules in ``sources`` share a routing."""
    generator = torch.Generator().manual_seed(1)
    members = len(bundle.config.members)
    data = tuple(
        FittingData(member=name, sha256=Digest.of_bytes(name.encode()), samples=3)
        for name in bundle.config.names
    )
    return NewGates(
        gate=Gate(
            kind="normalised",
            scope=scope,
            bias=bias,
            eps=1e-6,
            sources=sources,
            initialisation=None,
            fitted=Fitting(method="by hand", data=data),
        ),
        top_k=1,
        temperature=0.5,
        values={
            path: (
                torch.randn(members, in_features, generator=generator),
                torch.randn(members, generator=generator),
            )
            for path, (in_features, _) in bundle.shapes.items()
        },
    )
