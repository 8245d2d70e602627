"""Members that come and go: each task's member is removed, added again and replaced in turn.

A change has the statistics that a fit of all members kept apart, and at most the data of the member that
comes. What it gives is held to that fit: the other members' factors bit for bit, the gates of the bundle
with the member added again, and who serves the other tasks' prompts while it is away.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file

import meteora_registry as meteora
from benchmarks.gates.rows import digest_of
from benchmarks.pages import Row
from meteora_registry.files.digests import hash_file
from meteora_registry.schemas.gate_choices import Scope

from .fits import ABSTAIN, FORM

CHANGED: tuple[Scope, ...] = ("prompt", "token")
"""Scopes whose bundles change: one decision for a whole prompt, and one for every token."""

DECIDED_ITEMS = 4
NEXT_VERSION = 0.9
Tensors = dict[tuple[object, ...], torch.Tensor]


@dataclass(frozen=True, slots=True)
class ChangeUnit:
    """One member of one bundle.

    Attributes:
        scope: of the bundle.
        member: that goes, comes again and is replaced.
        fitted: the folder of the bundle of all members.
        statistics: the folder of each member's part in its gates.
        base: the base's folder.
        adapters: the members' folders.
        data: the folder with the texts of each member.
        prompts: of each of the other tasks.
    """

    scope: Scope
    member: str
    fitted: Path
    statistics: Path
    base: Path
    adapters: tuple[tuple[str, Path], ...]
    data: Path
    prompts: tuple[tuple[str, tuple[str, ...]], ...]

    def facts(self) -> Row:
        """Return the facts of its row that are known before anything changes."""
        weights = str(hash_file(self.fitted / "adapter_model.safetensors"))
        recipe = digest_of([weights, NEXT_VERSION, self.prompts])
        return {"scope": self.scope, "member": self.member, "recipe_sha256": recipe}


def keep_statistics(fused: Path, base: Path, data: Path, scope: Scope, statistics: Path) -> None:
    """Keep each member's part in the gates of a scope; parts that are there are not computed again."""
    with meteora.FusedBundle.open(fused, base=base) as bundle:
        bundle.fit(data, scope=scope, form=FORM, abstain=ABSTAIN, statistics=statistics).close()


def parts_row(fused: Path, base: Path, statistics: Path, fitted: Path, scope: Scope) -> Row:
    """Return whether the parts alone, each of one member's own texts, give the gates of the joint fit."""
    with (
        meteora.FusedBundle.open(fused, base=base) as bundle,
        bundle.fit(scope=scope, form=FORM, abstain=ABSTAIN, statistics=statistics) as apart,
    ):
        joint, found = tensors_by_member(fitted), tensors_by_member(apart)
    return {
        "kind": "parts",
        "scope": scope,
        "gates": sum(not is_factor(key) for key in joint),
        "same_gates": joint.keys() == found.keys() and _same(joint, found, {*joint}),
    }


def change_unit(unit: ChangeUnit) -> Row:
    """Return the row of a member."""
    name, adapter = unit.member, dict(unit.adapters)[unit.member]
    data = unit.data / f"{name}.jsonl"
    before, decided = tensors_by_member(unit.fitted), _decided(unit, unit.fitted)
    seconds: dict[str, float] = {}
    with TemporaryDirectory(prefix="meteora-change-") as scratch, ExitStack() as handles:
        newer = _next_version(adapter, Path(scratch) / name)
        fitted = handles.enter_context(meteora.FusedBundle.open(unit.fitted, base=unit.base))

        def timed(change: str, make: Callable[[], meteora.FusedBundle]) -> meteora.FusedBundle:
            began = time.perf_counter()
            changed = handles.enter_context(make())
            seconds[change] = round(time.perf_counter() - began, 1)
            return changed

        removed = timed("remove", lambda: fitted.remove(name, statistics=unit.statistics))
        added = timed("add", lambda: removed.add(adapter, data, statistics=unit.statistics, name=name))
        replaced = timed("replace", lambda: fitted.replace(name, newer))
        away, back, new = (tensors_by_member(each) for each in (removed, added, replaced))
        kept = _decided(unit, removed.folder)
    factors = {key for key in before if is_factor(key) and key[1] != name}
    gates = {key for key in before if not is_factor(key)}
    return {
        "kind": "change",
        **unit.facts(),
        "seconds": seconds,
        "factors_kept": all(_same(before, found, factors) for found in (away, back, new)),
        "gates_kept_by_replace": _same(before, new, gates) and before.keys() == new.keys(),
        "farthest_after_add": _distance(before, back),
        "decisions_kept": sum(one == other for one, other in zip(decided, kept, strict=True)),
        "decisions": len(decided),
    }


def _decided(unit: ChangeUnit, bundle: Path) -> list[str | None]:
    return decisions(bundle, unit.base, unit.prompts) if unit.scope == "prompt" else []


def tensors_by_member(folder: meteora.FusedBundle | Path) -> Tensors:
    """Return every tensor of a bundle taken apart by its members, in whichever order they are.

    A member's rows of a flat factor, without padding, are under the tensor's name and the member's, and so is
    its row of a gate; an element of a Gram matrix of the gates is under the names of both its members.
    """
    bundle = meteora.Bundle.open(folder)
    names, tensors = bundle.config.names, load_file(bundle.folder / "adapter_model.safetensors")
    found: Tensors = {
        (f"base_model.model.{path}.{factor}", member): tensors[f"base_model.model.{path}.{factor}"][
            layout.rows_of(place)
        ]
        for path, layout in bundle.config.layouts.items()
        for factor in ("meteora_A", "meteora_B")
        for place, member in enumerate(names)
        if layout.ranks[place]
    }
    for name, tensor in tensors.items():
        if name.endswith("gram"):
            found |= {(name, a, b): tensor[i, j] for i, a in enumerate(names) for j, b in enumerate(names)}
        elif "gate" in name.rpartition(".")[2]:
            classes = (*names, *(f"background {place}" for place in range(len(tensor) - len(names))))
            found |= {(name, each): tensor[place] for place, each in enumerate(classes)}
    return found


def is_factor(key: tuple[object, ...]) -> bool:
    """Return whether a tensor of ``tensors_by_member`` is a member's factor."""
    return str(key[0]).endswith(("meteora_A", "meteora_B"))


@torch.no_grad()
def decisions(
    bundle: meteora.FusedBundle | Path, base: Path, prompts: Sequence[tuple[str, Sequence[str]]]
) -> list[str | None]:
    """Return the member that one decision for a prompt chooses, for the prompts of all these tasks."""
    loaded = meteora.load(bundle, base)
    decided: list[str | None] = []
    for _, own in prompts:
        batch = loaded.encode(list(own), padding=True, add_special_tokens=False)
        with loaded.routing() as record:
            loaded.model(**batch, use_cache=False, logits_to_keep=1)
        found = sorted(record.decisions, key=lambda each: each.sequence)
        decided += [each.members[0] if each.members else None for each in found]
    return decided


def _next_version(adapter: Path, folder: Path) -> Path:
    """Write an adapter with the same modules and other weights, as a member's next version has."""
    shutil.copytree(adapter, folder)
    weights = load_file(adapter / "adapter_model.safetensors")
    changed = {name: NEXT_VERSION * value if "lora_B" in name else value for name, value in weights.items()}
    save_file(changed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def _same(first: Tensors, second: Tensors, keys: set[tuple[object, ...]]) -> bool:
    return all(key in second and torch.equal(first[key], second[key]) for key in keys)


def _distance(first: Tensors, second: Tensors) -> float:
    """Return the largest difference of two tensors of a name, as a part of the larger of it and 1."""
    if first.keys() != second.keys():
        return float("inf")
    return max(
        ((value - second[name]).abs().max() / max(1.0, value.abs().max().item())).item()
        for name, value in first.items()
    )
