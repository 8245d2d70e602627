"""The plan of a fuse: pure, from headers and configs; no weight is read.

Every reason why the members do not go together is collected, so that one run shows all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..bundle.member import modules_by_path
from ..inspection.base_facts import path_in_larger_model
from ..inspection.targets import is_renamed_path
from ..schemas.base_name import group_by_base, is_local_path, is_same_base, present_name
from ..schemas.bundle import (
    MAX_LAYOUT_ENTRIES,
    MAX_MODULES,
    MAX_SCALING,
    MIN_SCALING,
    ModuleLayout,
    align_rank,
)
from ..schemas.finding import Effect, Finding, Severity, Verdict
from ..schemas.inventory import Dtype, ModuleFactors, lossy_dtypes
from ..schemas.limits import MAX_BUNDLE_BYTES
from ..schemas.plan import Conflict, FusePlan, PlannedMember, PlannedModule
from ..schemas.recipe import DtypeName, Recipe
from ..schemas.trained_on import agreed, common_mapping
from .fuse_member import Member

DEFAULT_TOP_K = 2
# PEFT reads one file. Above the first figure hosts and loaders get slow, above the second they fail.
LARGE_BUNDLE_BYTES = 5 * 10**9
_GATE_BYTES = 4
# Rules about modules that the base lacks, or has in another kind or shape: a conflict names each of these.
_SHOWN_BY_MODULES = frozenset({"MR501", "MR502", "MR503"})

DTYPES: dict[DtypeName, Dtype] = {"float32": Dtype.F32, "float16": Dtype.F16, "bfloat16": Dtype.BF16}


@dataclass(frozen=True, slots=True)
class BaseModules:
    """The base's modules: the shape of every linear one, and the new names of old ones.

    ``shapes`` maps a module path to ``(in_features, out_features)``.
    """

    shapes: Mapping[str, tuple[int, int]]
    renamed: Mapping[str, str]


def make_plan(
    members: Sequence[Member], recipe: Recipe, *, base_modules: BaseModules | None = None
) -> FusePlan:
    """Return the plan for a recipe, with every conflict in it.

    Args:
        members: those that the recipe names, opened, in its order.
        recipe: what is asked for; what it leaves open is chosen here.
        base_modules: those of the base, where it is at hand.
    """
    renamed = base_modules.renamed if base_modules else {}
    factors = [modules_by_path(member.inventory, renamed) for member in members]
    dtype = DTYPES[recipe.dtype] if recipe.dtype else _common_dtype(members)
    top_k = recipe.top_k if recipe.top_k is not None else min(DEFAULT_TOP_K, len(members))
    defaults = [member.inventory.scaling for member in members]
    modules = tuple(_plan_module(path, factors, defaults, dtype) for path in sorted(set().union(*factors)))
    base, base_conflicts = choose_base(members, recipe)
    missing = _missing_modules(members, factors, base_modules) if base_modules else []
    conflicts = [
        *_member_conflicts(members),
        *_verdict_conflicts(members, missing, trust_tensors=recipe.trust_tensors),
        *_class_conflicts(members, factors),
        *_scaling_conflicts(members),
        *_size_conflicts(members, modules),
        *base_conflicts,
        *_renaming_conflicts(members, renamed),
        *_shape_conflicts(members, factors),
        *missing,
        *_routing_conflicts(members, top_k),
        *_dtype_conflicts(members, dtype, stated=recipe.dtype is not None),
    ]
    size_bytes = sum(module.size_bytes for module in modules)
    if size_bytes > MAX_BUNDLE_BYTES:
        conflicts.append(_too_large(size_bytes))
    return FusePlan(
        base=base,
        base_revision=recipe.base_revision or agreed(member.base_revision for member in members),
        task_type=agreed(member.task_type for member in members),
        auto_mapping=common_mapping((member.task_type, member.auto_mapping) for member in members),
        dtype=dtype,
        top_k=top_k,
        temperature=recipe.temperature,
        gate=recipe.gate,
        seed=recipe.seed,
        with_experts=recipe.with_experts,
        members=tuple(_plan_member(member, dtype, renamed) for member in members),
        modules=modules,
        conflicts=tuple(conflicts),
        warnings=(
            *_warnings(members, recipe, base, size_bytes),
            *(() if base_modules else _old_names(members)),
        ),
    )


def _plan_member(member: Member, dtype: Dtype, renamed: Mapping[str, str]) -> PlannedMember:
    own_paths = [module.path for module in member.inventory.modules]
    return PlannedMember(
        name=member.name,
        adapter=member.adapter,
        rank=member.inventory.rank,
        scaling=member.inventory.scaling,
        modules=len(own_paths),
        cast_from=lossy_dtypes(member.inventory.dtypes, dtype),
        renamed_modules={path: renamed[path] for path in own_paths if renamed.get(path, path) != path},
        trusts_tensors=any(finding.effect is Effect.UNDECLARED for finding in member.findings),
    )


def _plan_module(
    path: str, factors: Sequence[Mapping[str, ModuleFactors]], defaults: Sequence[float], dtype: Dtype
) -> PlannedModule:
    present = [by_path.get(path) for by_path in factors]
    first = next(module for module in present if module is not None)
    ranks = tuple(module.rank if module else 0 for module in present)
    scalings = tuple(m.scaling if m else default for m, default in zip(present, defaults, strict=True))
    layout = ModuleLayout.of(path, ranks, scalings)
    row_bytes = (first.in_features + first.out_features) * dtype.size_bytes
    return PlannedModule(
        path=path,
        in_features=first.in_features,
        out_features=first.out_features,
        ranks=ranks,
        scalings=scalings,
        rows=layout.rows,
        size_bytes=layout.rows * row_bytes + len(factors) * first.in_features * _GATE_BYTES,
        padding_bytes=sum(align_rank(rank) - rank for rank in ranks) * row_bytes,
    )


def _common_dtype(members: Sequence[Member]) -> Dtype:
    found = {dtype for member in members for dtype in member.inventory.dtypes}
    common = next(iter(found)) if len(found) == 1 else Dtype.F32
    return Dtype.F32 if common is Dtype.F64 else common


def choose_base(members: Sequence[Member], recipe: Recipe) -> tuple[str | None, list[Conflict]]:
    """Return the base that a bundle of these members names; None, with the conflict, if there is none."""
    if recipe.base is not None:
        return present_name(recipe.base), []
    named = [(member.name, member.base) for member in members if member.base]
    groups = group_by_base(named)
    remedy = "state the base that all were trained on with `--base ORG/MODEL`"
    if len(groups) > 1:
        listed = ", ".join(f"`{name}` names `{base}`" for name, base in named)
        message = f"the members name different bases: {listed}"
        return None, [_conflict([name for name, _ in named], "base", message, remedy)]
    base = next(iter(groups), None)
    if base is None or is_local_path(base):
        found = "no member names its base" if base is None else f"the base `{base}` is a path, not a Hub id"
        return None, [_conflict([member.name for member in members], "base", found, remedy)]
    return base, []


def _member_conflicts(members: Sequence[Member]) -> list[Conflict]:
    conflicts = []
    for name, count in Counter(member.name for member in members).items():
        if count > 1:
            message = f"the name `{name}` occurs {count} times"
            remedy = "give each member a name of its own in the recipe"
            conflicts.append(_conflict([name] * count, "name", message, remedy))
    first_of: dict[tuple[str, str], str] = {}
    for member in members:
        content = (member.weights_sha256, member.canonical_config_sha256)
        if content in first_of:
            message = f"`{first_of[content]}` and `{member.adapter}` have the same content"
            conflicts.append(
                _conflict([first_of[content], member.adapter], "duplicate", message, "leave one out")
            )
        first_of.setdefault(content, member.adapter)
    return conflicts


def _verdict_conflicts(
    members: Sequence[Member], missing: Sequence[Conflict], *, trust_tensors: bool
) -> list[Conflict]:
    shown = {name for conflict in missing for name in conflict.members}
    conflicts = []
    for member in members:
        hidden = _SHOWN_BY_MODULES if member.name in shown else frozenset()
        findings = [each for each in member.findings if each.code not in hidden]
        if not Verdict.of(findings, trust_tensors=trust_tensors).fusable:
            conflicts.append(_verdict_conflict(member, findings))
    return conflicts


def _verdict_conflict(member: Member, findings: Sequence[Finding]) -> Conflict:
    refusals = [finding for finding in findings if finding.severity is Severity.REFUSE]
    listed = "; ".join(f"{finding.code} {finding.title}" for finding in refusals)
    remedy = "`meteora-registry show` and `validate` tell more; leave it out"
    if Verdict.of(member.findings, trust_tensors=True).fusable:
        remedy = "`--trust-tensors` takes the modules all the same; or declare them in `target_modules`"
    return _conflict([member.name], "verdict", f"`{member.adapter}` is {member.verdict}: {listed}", remedy)


def _class_conflicts(
    members: Sequence[Member], factors: Sequence[Mapping[str, ModuleFactors]]
) -> list[Conflict]:
    """Return the conflict of members whose paths never meet because some were trained without the head."""
    bodies = [index for index, member in enumerate(members) if member.trained_on.lacks_head]
    whole = [index for index in range(len(members)) if index not in bodies]
    for one in bodies:
        for other in whole:
            if not factors[one].keys() & factors[other].keys():
                names = [members[one].name, members[other].name]
                message = f"`{names[0]}` was trained without an output layer and `{names[1]}` with one"
                remedy = "their modules have different paths; fuse only adapters of one class"
                return [_conflict(names, "class", message, remedy)]
    return []


def _scaling_conflicts(members: Sequence[Member]) -> list[Conflict]:
    conflicts = []
    for member in members:
        own = [("by default", member.inventory.scaling)]
        own += [(f"in `{module.path}`", module.scaling) for module in member.inventory.modules]
        beyond = [each for each in own if not MIN_SCALING <= each[1] <= MAX_SCALING]
        if beyond:
            place, scaling = beyond[0]
            message = (
                f"`{member.name}` has the scaling {scaling:g} {place}, "
                f"a bundle holds {MIN_SCALING:g} to {MAX_SCALING:g}"
            )
            remedy = "correct `lora_alpha` and `r` in its config, or leave it out"
            conflicts.append(_conflict([member.name], "scaling", message, remedy))
    return conflicts


def _size_conflicts(members: Sequence[Member], modules: Sequence[PlannedModule]) -> list[Conflict]:
    if len(modules) <= MAX_MODULES and len(members) * len(modules) <= MAX_LAYOUT_ENTRIES:
        return []
    message = (
        f"{len(members)} members have {len(modules)} modules, "
        f"a bundle holds {MAX_MODULES} modules and {MAX_LAYOUT_ENTRIES} pairs of a member and a module"
    )
    return [_conflict([], "size", message, "fuse fewer members")]


def _renaming_conflicts(members: Sequence[Member], renamed: Mapping[str, str]) -> list[Conflict]:
    conflicts = []
    for member in members:
        counts = Counter(renamed.get(module.path, module.path) for module in member.inventory.modules)
        for path in sorted(path for path, count in counts.items() if count > 1):
            message = f"`{member.name}` has factors for `{path}` under its old name and its new one"
            conflicts.append(_conflict([member.name], "base", message, "only one can be meant; leave it out"))
    return conflicts


def _shape_conflicts(
    members: Sequence[Member], factors: Sequence[Mapping[str, ModuleFactors]]
) -> list[Conflict]:
    conflicts = []
    for path in sorted(set().union(*factors)):
        found = [
            (member.name, by_path[path].in_features, by_path[path].out_features)
            for member, by_path in zip(members, factors, strict=True)
            if path in by_path
        ]
        if len({entry[1:] for entry in found}) > 1:
            listed = ", ".join(f"`{name}` has {i} -> {o}" for name, i, o in found)
            message = f"`{path}` has different shapes: {listed}"
            remedy = "these adapters are for different bases"
            conflicts.append(_conflict([name for name, *_ in found], "shape", message, remedy))
    return conflicts


def _missing_modules(
    members: Sequence[Member], factors: Sequence[Mapping[str, ModuleFactors]], base: BaseModules
) -> list[Conflict]:
    conflicts = []
    for member, by_path in zip(members, factors, strict=True):
        for path, module in by_path.items():
            found = (module.in_features, module.out_features)
            remedy = "it was trained on another base"
            if path not in base.shapes:
                message = (
                    f"`{member.name}` has factors for `{path}`, which is not a linear module of the base"
                )
                if inside := path_in_larger_model(path, base.shapes):
                    message += f"; the base has it as `{inside}`"
                    remedy = (
                        "it was trained on the text class of this checkpoint; "
                        "a bundle for the base's own class does not take it"
                    )
            elif base.shapes[path] != found:
                message = f"`{path}` of `{member.name}` is {found}, the base's is {base.shapes[path]}"
            else:
                continue
            conflicts.append(_conflict([member.name], "base", message, remedy))
    return conflicts


def _routing_conflicts(members: Sequence[Member], top_k: int) -> list[Conflict]:
    if top_k <= len(members):
        return []
    message = f"top_k is {top_k}, expected at most the number of members, {len(members)}"
    return [_conflict([], "top_k", message, "lower `--top-k` or add members")]


def _dtype_conflicts(members: Sequence[Member], dtype: Dtype, *, stated: bool) -> list[Conflict]:
    if stated:
        return []
    return [
        _conflict(
            [member.name],
            "dtype",
            f"`{member.name}` has {', '.join(lossy)} factors, which {dtype} does not hold exactly",
            "ask for the loss with `--dtype float32`",
        )
        for member in members
        if (
            lossy := [
                each
                for each in lossy_dtypes(member.inventory.dtypes, dtype)
                if not _is_default_cast(each, dtype)
            ]
        )
    ]


def _is_default_cast(source: Dtype, target: Dtype) -> bool:
    """Return whether PEFT casts so by itself: it holds factors in float32, and no base is in float64."""
    return source is Dtype.F64 and target is Dtype.F32


def _too_large(size_bytes: int) -> Conflict:
    message = f"the bundle would have {size_bytes} bytes, expected at most {MAX_BUNDLE_BYTES}"
    return _conflict([], "size", message, "fuse fewer members or choose `--dtype bfloat16`")


def _warnings(members: Sequence[Member], recipe: Recipe, base: str | None, size_bytes: int) -> Iterable[str]:
    if LARGE_BUNDLE_BYTES < size_bytes <= MAX_BUNDLE_BYTES:
        yield f"the bundle will have {size_bytes / 1e9:.1f} GB in one file, which some loaders read slowly"
    # One base because `--base` states so, here or in `add`: worth a look all the same.
    spelled = [(member.name, member.spelled_base) for member in members if member.spelled_base]
    strangers = [each for each in spelled if base is not None and not is_same_base(each[1], base)]
    if strangers:
        listed = ", ".join(f"`{name}` names `{spelled}`" for name, spelled in strangers)
        yield f"the base is taken to be `{base}`: {listed}"
    if base is not None and is_local_path(base):
        yield f"the bundle names the folder `{base}` as its base, which exists on this machine only"
    if len({member.task_type for member in members if member.task_type}) > 1:
        yield "the members were made for different tasks, so the bundle states none"


def _old_names(members: Sequence[Member]) -> Iterable[str]:
    """Yield a warning of each member with module names that transformers has changed; the base is unknown."""
    for member in members:
        # The model that `AutoModel` loads has the old beginnings today.
        if member.trained_on.lacks_head:
            continue
        paths = [module.path for module in member.inventory.modules]
        old = next((path for path in paths if is_renamed_path(path)), None)
        if old is not None:
            yield (
                f"`{member.name}` has module names that transformers has changed, such as `{old}`: "
                "the bundle keeps them and may not load; give the base's config with `--base-folder`"
            )


def _conflict(members: Iterable[str], subject: str, message: str, remedy: str) -> Conflict:
    return Conflict(members=tuple(members), subject=subject, message=message, remedy=remedy)
