from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from meteora_registry.fuser.fuse_member import Member
from meteora_registry.fuser.planning import BaseModules
from meteora_registry.schemas.finding import Verdict
from meteora_registry.schemas.inventory import Dtype, Inventory
from meteora_registry.schemas.trained_on import TrainedOn
from support.members import plan_of, read_member
from support.models import make_adapter, tiny_gpt2, tiny_llama, wide_llama


def subjects(plan_conflicts: tuple[object, ...]) -> list[str]:
    return [conflict.subject for conflict in plan_conflicts]  # type: ignore[attr-defined]


def test_plan_of_members_that_fit_has_no_conflict(members: list[Member]) -> None:
    plan = plan_of(members)
    assert plan.conflicts == ()
    assert plan.base == "org/base"
    assert (plan.dtype, plan.top_k, plan.task_type) == (Dtype.F32, 2, "CAUSAL_LM")


def test_plan_gives_every_module_the_members_own_ranks(members: list[Member]) -> None:
    plan = plan_of(members)
    ranks = {module.path: module.ranks for module in plan.modules}
    assert ranks["model.layers.0.self_attn.q_proj"] == (4, 8, 0, 4, 0)
    assert ranks["model.layers.1.self_attn.q_proj"] == (4, 8, 0, 12, 5)
    assert ranks["model.layers.1.mlp.up_proj"] == (0, 8, 0, 0, 9)
    rows = {module.path: module.rows for module in plan.modules}
    assert rows["model.layers.1.self_attn.q_proj"] == 8 + 8 + 16 + 8


def test_plan_counts_the_bytes_that_will_be_written(members: list[Member], fused: Path) -> None:
    plan = plan_of(members, top_k=2)
    weights = fused / "adapter_model.safetensors"
    header_bytes = int.from_bytes(weights.read_bytes()[:8], "little")
    assert weights.stat().st_size == 8 + header_bytes + plan.size_bytes


def test_plan_takes_one_for_top_k_when_there_is_one_member(members: list[Member]) -> None:
    assert plan_of(members[:1]).top_k == 1


def test_plan_refuses_top_k_above_the_number_of_members(members: list[Member]) -> None:
    plan = plan_of(members, top_k=6)
    assert [str(conflict) for conflict in plan.conflicts] == [
        "top_k: top_k is 6, expected at most the number of members, 5; lower `--top-k` or add members"
    ]


def test_plan_refuses_the_same_adapter_under_two_names(members: list[Member]) -> None:
    twin = dataclasses.replace(members[0], name="twin", adapter="twin")
    plan = plan_of([*members, twin])
    assert [str(conflict) for conflict in plan.conflicts] == [
        "duplicate: `rank4` and `twin` have the same content; leave one out"
    ]


def test_plan_refuses_one_name_twice(members: list[Member]) -> None:
    named_alike = dataclasses.replace(members[1], name="rank4")
    assert subjects(plan_of([members[0], named_alike]).conflicts) == ["name"]


def test_plan_refuses_different_bases_unless_one_is_stated(members: list[Member]) -> None:
    stranger = dataclasses.replace(members[1], base="org/other", spelled_base="org/other")
    plan = plan_of([members[0], stranger])
    assert [str(conflict) for conflict in plan.conflicts] == [
        "base: the members name different bases: `rank4` names `org/base`, `rank8` names `org/other`; "
        "state the base that all were trained on with `--base ORG/MODEL`"
    ]
    stated = plan_of([members[0], stranger], base="org/base")
    assert stated.conflicts == ()
    assert stated.warnings == ("the base is taken to be `org/base`: `rank8` names `org/other`",)


def test_plan_warns_where_one_base_is_spelled_in_two_ways(members: list[Member]) -> None:
    mirror = dataclasses.replace(members[1], spelled_base="mirror/base-bnb-4bit")
    plan = plan_of([members[0], mirror])
    assert plan.conflicts == ()
    assert plan.warnings == ("the base is taken to be `org/base`: `rank8` names `mirror/base-bnb-4bit`",)


@pytest.mark.parametrize("base", [None, "/content/model", "D:\\models\\llama", "./base"])
def test_plan_asks_for_the_base_when_no_member_names_a_hub_id(
    members: list[Member], base: str | None
) -> None:
    nameless = [dataclasses.replace(member, base=base) for member in members]
    assert subjects(plan_of(nameless).conflicts) == ["base"]
    assert plan_of(nameless, base="org/base").conflicts == ()


@pytest.mark.parametrize("scaling", [1e300, 1e21, 1e-21, 1e-300, 0.0])
@pytest.mark.parametrize("is_default", [True, False], ids=["by default", "in a module"])
def test_plan_refuses_a_scaling_that_no_bundle_holds(
    members: list[Member], scaling: float, is_default: bool
) -> None:
    inventory = members[0].inventory
    changed = (
        inventory.model_copy(update={"scaling": scaling})
        if is_default
        else inventory.model_copy(
            update={"modules": (inventory.modules[0].model_copy(update={"scaling": scaling}),)}
        )
    )
    place = "by default" if is_default else f"in `{inventory.modules[0].path}`"
    plan = plan_of([dataclasses.replace(members[0], inventory=changed)])
    assert [str(conflict) for conflict in plan.conflicts] == [
        f"scaling: `{members[0].name}` has the scaling {scaling:g} {place}, a bundle holds 1e-20 to 1e+20; "
        "correct `lora_alpha` and `r` in its config, or leave it out"
    ]


def test_plan_refuses_more_modules_than_a_bundle_holds(
    members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meteora_registry.fuser.planning.MAX_LAYOUT_ENTRIES", 69)
    plan = plan_of(members)
    assert [str(conflict) for conflict in plan.conflicts] == [
        "size: 5 members have 14 modules, a bundle holds 65536 modules and 69 pairs of a member and a "
        "module; fuse fewer members"
    ]


def test_plan_refuses_shapes_that_disagree_and_says_who(members: list[Member], tmp_path: Path) -> None:
    wide = read_member(make_adapter(wide_llama, tmp_path / "wide", seed=9, r=4, target_modules=["q_proj"]))
    plan = plan_of([members[0], wide])
    assert [str(conflict) for conflict in plan.conflicts] == [
        "shape: `model.layers.0.self_attn.q_proj` has different shapes: "
        "`rank4` has 32 -> 32, `wide` has 64 -> 64; these adapters are for different bases"
    ]


def test_plan_refuses_a_member_that_cannot_be_fused(members: list[Member], tmp_path: Path) -> None:
    refused = read_member(make_adapter(tiny_llama, tmp_path / "dora", seed=1, r=4, use_dora=True))
    assert refused.verdict == Verdict(sound=True, fusable=False)
    assert subjects(plan_of([refused, members[1]]).conflicts) == ["verdict"]


def test_plan_collects_all_conflicts_at_once(members: list[Member]) -> None:
    stranger = dataclasses.replace(members[1], base="org/other", name="rank4")
    plan = plan_of([members[0], stranger], top_k=3)
    assert subjects(plan.conflicts) == ["name", "base", "top_k"]


def test_plan_takes_the_common_element_type_else_float32(members: list[Member], tmp_path: Path) -> None:
    half = [
        read_member(make_adapter(tiny_llama, tmp_path / name, seed=seed, r=4, dtype=torch.bfloat16))
        for seed, name in enumerate(("half-one", "half-two"))
    ]
    assert plan_of(half).dtype is Dtype.BF16
    mixed = plan_of([half[0], members[0]])
    assert (mixed.dtype, mixed.conflicts) == (Dtype.F32, ())


def test_plan_records_who_loses_by_the_element_type_asked_for(members: list[Member]) -> None:
    plan = plan_of(members[:2], dtype="bfloat16")
    assert [member.cast_from for member in plan.members] == [(Dtype.F32,), (Dtype.F32,)]
    assert plan.conflicts == ()


def test_plan_refuses_a_member_with_modules_that_the_base_lacks(
    members: list[Member], tmp_path: Path
) -> None:
    gpt2 = read_member(
        make_adapter(
            tiny_gpt2, tmp_path / "gpt2", seed=1, r=4, target_modules=["c_attn"], fan_in_fan_out=True
        )
    )
    shapes = {m.path: (m.in_features, m.out_features) for m in members[1].inventory.modules}
    plan = plan_of([members[0], gpt2], base_modules=BaseModules(shapes, {}))
    assert subjects(plan.conflicts) == ["base", "base"]
    assert "not a linear module of the base" in plan.conflicts[0].message


def test_plan_refuses_a_text_adapter_on_a_larger_class_of_its_checkpoint(members: list[Member]) -> None:
    shapes = {
        m.path.replace("model.", "model.language_model.", 1): (m.in_features, m.out_features)
        for m in members[0].inventory.modules
    }
    conflict = plan_of(members[:1], base_modules=BaseModules(shapes, {})).conflicts[0]
    assert "the base has it as `model.language_model.layers.0.self_attn.q_proj`" in conflict.message
    assert "trained on the text class of this checkpoint" in conflict.remedy


@pytest.mark.parametrize(
    ("path", "task", "warned"),
    [
        ("language_model.model.layers.0.self_attn.q_proj", "CAUSAL_LM", True),
        ("language_model.model.layers.0.self_attn.q_proj", "FEATURE_EXTRACTION", False),
        ("vision_model.encoder.layers.0.self_attn.q_proj", "CAUSAL_LM", False),
        ("model.layers.0.self_attn.q_proj", "CAUSAL_LM", False),
    ],
    ids=["old name", "body of today", "same under both", "text model"],
)
def test_plan_without_a_base_warns_of_module_names_that_transformers_has_changed(
    members: list[Member], path: str, task: str, warned: bool
) -> None:
    own = members[0].inventory
    module = own.modules[0].model_copy(update={"path": path})
    inventory = Inventory(modules=(module,), rank=own.rank, scaling=own.scaling)
    trained_on = TrainedOn.read(task, None)
    member = dataclasses.replace(members[0], inventory=inventory, task_type=task, trained_on=trained_on)
    warnings = plan_of([member]).warnings
    assert any("module names that transformers has changed" in each for each in warnings) is warned
    same = {path: (own.modules[0].in_features, own.modules[0].out_features)}
    known = plan_of([member], base_modules=BaseModules(same, {})).warnings
    assert not any("module names that transformers has changed" in each for each in known)


def test_plan_renames_modules_to_the_bases_current_names(members: list[Member]) -> None:
    renamed = {m.path: f"language_model.{m.path}" for m in members[0].inventory.modules}
    shapes = {renamed[m.path]: (m.in_features, m.out_features) for m in members[0].inventory.modules}
    plan = plan_of(members[:1], base_modules=BaseModules(shapes, renamed))
    assert plan.conflicts == ()
    assert {module.path for module in plan.modules} == set(shapes)
    assert plan.members[0].renamed_modules == renamed


def test_plan_refuses_a_module_under_its_old_name_and_its_new_one(members: list[Member]) -> None:
    paths = [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]
    shapes = {m.path: (m.in_features, m.out_features) for m in members[0].inventory.modules}
    plan = plan_of(members[:1], base_modules=BaseModules(shapes, {paths[0]: paths[1]}))
    assert [str(conflict) for conflict in plan.conflicts] == [
        f"base: `rank4` has factors for `{paths[1]}` under its old name and its new one; "
        "only one can be meant; leave it out"
    ]


def test_plan_takes_spellings_of_one_base_for_one(members: list[Member]) -> None:
    old, new = (
        dataclasses.replace(member, base=base, spelled_base=base)
        for member, base in zip(members, ("gpt2", "OpenAI-community/GPT2"), strict=False)
    )
    plan = plan_of([old, new])
    assert (plan.base, plan.conflicts) == ("openai-community/gpt2", ())
    assert not any("the base is taken to be" in warning for warning in plan.warnings)


def test_plan_does_not_take_a_quantised_copy_for_its_original(members: list[Member]) -> None:
    one, other = (
        dataclasses.replace(member, base=base, spelled_base=base)
        for member, base in zip(members, ("org/base", "org/base-bnb-4bit"), strict=False)
    )
    assert subjects(plan_of([one, other]).conflicts) == ["base"]
