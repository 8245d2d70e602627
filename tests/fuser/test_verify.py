from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from meteora_registry.bundle import Bundle
from meteora_registry.bundle.files import check_record, write_record
from meteora_registry.fuser import arithmetic
from meteora_registry.fuser.arithmetic import FORCED_TOKENS, ROUTED_TOKENS, MemberFactors, random_tokens
from meteora_registry.fuser.bundle_writer import write_bundle
from meteora_registry.fuser.fuse_member import Member, MemberFiles
from meteora_registry.fuser.planning import BaseModules
from meteora_registry.fuser.verifier import verify_bundle
from meteora_registry.kernels.reference import TOLERANCES as KERNEL_TOLERANCES
from meteora_registry.kernels.routing import Routing, select_top_k
from meteora_registry.schemas.errors import SourceUnreadable
from meteora_registry.schemas.verification import TOLERANCES, Level, Outcome
from support.members import files_of, fuse, plan_of, read_members
from support.models import LLAMA_MEMBERS, make_adapter, tiny_llama
from support.tampering import (
    Json,
    Tensors,
    change_config,
    change_manifest,
    change_tensors,
    copy_bundle,
    flip_byte,
    make_digests_right,
    with_flipped_byte,
)
from support.verifying import assert_fails, check

Q_PROJ = "model.layers.0.self_attn.q_proj"
DOWN_PROJ = "model.layers.0.mlp.down_proj"


def test_whole_bundle_passes_both_levels(fused: Path, members: list[Member]) -> None:
    for record in (check(fused), check(fused, members)):
        assert (record.outcome, record.problems, record.unchecked) == (Outcome.PASS, (), ())
        assert len(record.modules) == 14
        assert all(run.max_error is not None and run.max_error <= 1e-5 for run in record.backends_run)


@pytest.mark.parametrize(
    ("field", "value"),
    [("scaling", 1e300), ("scaling", 1e-300), ("rank", 10**300)],
    ids=["huge scaling", "tiny scaling", "huge rank"],
)
def test_numbers_that_no_bundle_holds_fail_with_a_problem(
    fused: Path, tmp_path: Path, field: str, value: float
) -> None:
    bundle = copy_bundle(fused, tmp_path / "bundle")

    def change(config: Json) -> None:
        config["members"][0][field] = value

    change_config(bundle, change)
    assert_fails(check(bundle), f"members.0.{field}: input should be")


@pytest.mark.parametrize("value", [3e38, 1e20, 1e-45], ids=["largest", "overflows", "subnormal"])
@pytest.mark.parametrize("tensor", ["meteora_A", "meteora_B", "meteora_gate"])
def test_extreme_numbers_in_tensors_end_in_a_verdict(
    fused: Path, tmp_path: Path, tensor: str, value: float
) -> None:
    bundle = copy_bundle(fused, tmp_path / "bundle")

    def change(tensors: Tensors) -> None:
        for name, found in tensors.items():
            if name.endswith(tensor):
                found[:1] = value

    change_tensors(bundle, change)
    assert check(bundle).outcome in Outcome


def test_tolerances_of_records_are_those_of_the_kernels() -> None:
    of_kernels = {str(dtype).removeprefix("torch."): bound for dtype, bound in KERNEL_TOLERANCES.items()}
    del of_kernels["float64"]
    assert of_kernels == TOLERANCES


def test_record_names_what_ran_and_what_did_not(fused: Path) -> None:
    record = check(fused)
    first = record.backends_run[0]
    assert (first.backend, first.compute_dtype, first.modules) == ("cpu", "float32", 14)
    named = {run.backend for run in record.backends_run} | {skip.backend for skip in record.backends_not_run}
    assert {"cpu", "cuda"} <= named
    assert all(skip.reason for skip in record.backends_not_run)
    assert {"torch", "python", "meteora-registry"} <= set(record.versions)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_bundle_passes_in_float32_and_in_its_own_type(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    folders = {
        name: make_adapter(tiny_llama, tmp_path / name, seed=seed, dtype=dtype, base="org/base", r=4 + seed)
        for seed, name in enumerate(("one", "two"))
    }
    members = read_members(folders)
    record = check(fuse(members, tmp_path / "bundle"), members)
    assert record.outcome is Outcome.PASS, record.problems
    assert {run.compute_dtype for run in record.backends_run} == {
        "float32",
        str(dtype).removeprefix("torch."),
    }


def test_bundle_with_a_lossy_cast_passes_level_source(members: list[Member], tmp_path: Path) -> None:
    bundle = fuse(members, tmp_path / "bundle", dtype="bfloat16")
    record = check(bundle, members)
    assert record.outcome is Outcome.PASS, record.problems


@pytest.mark.parametrize("gate", ["arrow", "normal"])
def test_unfitted_gate_passes_level_source(members: list[Member], tmp_path: Path, gate: str) -> None:
    bundle = fuse(members[:3], tmp_path / "bundle", gate=gate, seed=7)  # type: ignore[arg-type]
    assert check(bundle, members[:3]).outcome is Outcome.PASS


def test_level_source_without_the_members_files_is_inconclusive(fused: Path, members: list[Member]) -> None:
    record = check(fused, members[1:])
    assert record.outcome is Outcome.INCONCLUSIVE
    assert record.unchecked == ("the own files of member `rank4` were not found",)


def test_level_source_finds_the_members_files_among_the_experts(
    members: list[Member], tmp_path: Path
) -> None:
    bundle = fuse(members[:2], tmp_path / "bundle", with_experts=True)
    record = verify_bundle(bundle, level=Level.SOURCE)
    # They are compared, but a bundle is not a witness of itself.
    assert (record.outcome, record.problems) == (Outcome.INCONCLUSIVE, ())
    assert record.unchecked == tuple(
        f"that member `{name}` is from its own files: those that are at hand came with the bundle itself"
        for name in ("rank4", "rank8")
    )


def test_another_adapters_files_are_no_witness(fused: Path, members: list[Member]) -> None:
    files = files_of(members)
    files["rank4"], files["rank8"] = files["rank8"], files["rank4"]
    record = verify_bundle(fused, level=Level.SOURCE, sources=files)
    assert record.outcome is Outcome.INCONCLUSIVE
    assert "the config of member `rank4` has digest" in record.unchecked[0]


def test_experts_stand_in_for_a_witness_that_is_not_the_one_named(
    members: list[Member], tmp_path: Path
) -> None:
    bundle = fuse(members[:2], tmp_path / "bundle", with_experts=True)
    files = files_of(members)
    record = verify_bundle(
        bundle, level=Level.SOURCE, sources={"rank4": files["rank8"], "rank8": files["rank8"]}
    )
    assert record.outcome is Outcome.INCONCLUSIVE
    assert record.unchecked == (
        "that member `rank4` is from its own files: those that are at hand came with the bundle itself",
    )


def test_a_flipped_byte_anywhere_in_any_file_fails(members: list[Member], tmp_path: Path) -> None:
    bundle = fuse(members[:2], tmp_path / "bundle", with_experts=True)
    write_record(bundle, check(bundle, members[:2]))
    assert check(bundle).outcome is Outcome.PASS
    # A card is for people: `check_card` reports an edit, which changes no answer of the bundle.
    for path in sorted(path for path in bundle.rglob("*") if path.is_file() and path.name != "README.md"):
        size = path.stat().st_size
        for offset in sorted({0, 1, size // 3, size // 2, size - 2, size - 1}):
            flip_byte(path, offset)
            assert check(bundle).outcome is Outcome.FAIL, f"{path.name} at {offset}"
            flip_byte(path, offset)
    assert check(bundle).outcome is Outcome.PASS


def test_a_flipped_byte_in_every_place_of_the_record_fails(tmp_path: Path) -> None:
    # Of two modules, which have all fields that a record of more has.
    adapter = make_adapter(tiny_llama, tmp_path / "one", seed=1, base="org/base", target_modules=["q_proj"])
    bundle = fuse(read_members({"one": adapter}), tmp_path / "bundle")
    write_record(bundle, check(bundle))
    record = bundle / "verification.json"
    assert check_record(Bundle(bundle)) == []
    data = record.read_bytes()
    for offset in range(len(data)):
        record.write_bytes(with_flipped_byte(data, offset))
        assert check_record(Bundle(bundle)), offset


def swap_names(config: Json) -> None:
    one, two = config["members"][0], config["members"][1]
    one["name"], two["name"] = two["name"], one["name"]


def test_two_members_swapped_in_the_config_fail(fused: Path, tmp_path: Path) -> None:
    bundle = copy_bundle(fused, tmp_path / "bundle")
    change_config(bundle, swap_names)
    assert_fails(check(bundle), "the config has the members ['rank8', 'rank4'")


def test_two_members_of_equal_ranks_swapped_everywhere_fail(tmp_path: Path) -> None:
    # Names, ranks, scalings and the manifest's digests all agree: only the members' own numbers differ.
    folders = {
        name: make_adapter(tiny_llama, tmp_path / name, seed=seed, base="org/base", r=4)
        for seed, name in enumerate(("one", "two"))
    }
    members = read_members(folders)
    bundle = fuse(members, tmp_path / "bundle")

    def swap_factors(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if not name.endswith("gate"):
                tensors[name] = torch.cat([tensor[8:], tensor[:8]])

    change_tensors(bundle, swap_factors)
    assert_fails(check(bundle), "one")
    assert_fails(check(bundle, members), "alone is off by")


def test_one_module_scaled_wrongly_fails(fused: Path, tmp_path: Path) -> None:
    def double(config: Json) -> None:
        config["members"][0]["overrides"][Q_PROJ] = {"rank": 4, "scaling": 4.0}

    bundle = copy_bundle(fused, tmp_path / "bundle")
    change_config(bundle, double)
    assert_fails(check(bundle), f"`{Q_PROJ}`: `rank4` has scaling 4.0, its own config gives 2.0")


def test_one_module_scaled_wrongly_in_the_factors_fails(
    fused: Path, members: list[Member], tmp_path: Path
) -> None:
    def scale(tensors: Tensors) -> None:
        tensors[f"base_model.model.{Q_PROJ}.meteora_B"][:4] *= 1.001

    bundle = copy_bundle(fused, tmp_path / "bundle")
    change_tensors(bundle, scale)
    assert_fails(
        check(bundle, members), f"`{Q_PROJ}` on cpu in float32: member `rank4` alone is off by 0.001"
    )


def test_scaling_by_the_padded_rank_fails(fused: Path, tmp_path: Path) -> None:
    def use_padded_rank(config: Json) -> None:
        config["members"][0]["scaling"] = 8 / 8

    bundle = copy_bundle(fused, tmp_path / "bundle")
    change_config(bundle, use_padded_rank)
    assert_fails(check(bundle), "`rank4` has scaling 1.0, its own config gives 2.0")


def test_a_gate_row_moved_fails(fused: Path, members: list[Member], tmp_path: Path) -> None:
    def move(tensors: Tensors) -> None:
        gate = tensors[f"base_model.model.{Q_PROJ}.meteora_gate"]
        gate[[0, 1]] = gate[[1, 0]].clone()

    bundle = copy_bundle(fused, tmp_path / "bundle")
    change_tensors(bundle, move)
    assert_fails(check(bundle, members), f"`{Q_PROJ}`: the gate row of `rank4` is not what `arrow` gives")


def test_a_gate_row_of_half_the_gain_fails(fused: Path, members: list[Member], tmp_path: Path) -> None:
    def turn(tensors: Tensors) -> None:
        gate = tensors[f"base_model.model.{Q_PROJ}.meteora_gate"]
        A = tensors[f"base_model.model.{Q_PROJ}.meteora_A"][:4]
        # A direction that A ignores, so that half of the row's gain is left, and its length of one.
        ignored = torch.linalg.svd(A.double())[2][-1].float()
        gate[0] = 0.5 * gate[0] + 0.75**0.5 * ignored

    bundle = copy_bundle(fused, tmp_path / "bundle")
    change_tensors(bundle, turn)
    record = check(bundle, members)
    assert record.problems == (f"`{Q_PROJ}`: the gate row of `rank4` is not what `arrow` gives",)


def test_a_gate_row_of_twice_the_length_fails(fused: Path, members: list[Member], tmp_path: Path) -> None:
    def lengthen(tensors: Tensors) -> None:
        tensors[f"base_model.model.{Q_PROJ}.meteora_gate"][0] *= 2

    bundle = copy_bundle(fused, tmp_path / "bundle")
    change_tensors(bundle, lengthen)
    record = check(bundle, members)
    assert record.problems == (f"`{Q_PROJ}`: the gate row of `rank4` is not what `arrow` gives",)


@pytest.mark.parametrize("factor", ["A", "B"])
def test_padding_that_is_not_zero_fails(fused: Path, tmp_path: Path, factor: str) -> None:
    def dirty(tensors: Tensors) -> None:
        tensors[f"base_model.model.{Q_PROJ}.meteora_{factor}"][4, 0] = 1e-30

    bundle = copy_bundle(fused, tmp_path / "bundle")
    change_tensors(bundle, dirty)
    assert_fails(check(bundle), f"`{Q_PROJ}`: the padding of `rank4` is not zero")


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_values_that_are_not_finite_fail(fused: Path, tmp_path: Path, value: float) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors[f"base_model.model.{Q_PROJ}.meteora_gate"][0, 0] = value

    bundle = copy_bundle(fused, tmp_path / "bundle")
    change_tensors(bundle, spoil)
    assert_fails(check(bundle), f"`{Q_PROJ}`: gate has values that are not finite")


def test_the_manifest_of_another_bundle_fails(fused: Path, members: list[Member], tmp_path: Path) -> None:
    bundle = copy_bundle(fused, tmp_path / "bundle")
    other = fuse(members[:2], tmp_path / "other")
    shutil.copy(other / "meteora_manifest.json", bundle)
    assert_fails(check(bundle), "the manifest lists")


def test_the_record_of_another_bundle_fails(fused: Path, members: list[Member], tmp_path: Path) -> None:
    bundle = copy_bundle(fused, tmp_path / "bundle")
    other = fuse(members[:2], tmp_path / "other")
    write_record(bundle, check(other))
    assert_fails(check(bundle), "`verification.json` is for the manifest")


def test_a_file_that_the_manifest_does_not_list_fails(fused: Path, tmp_path: Path) -> None:
    bundle = copy_bundle(fused, tmp_path / "bundle")
    (bundle / "adapter_model.bin").write_bytes(b"pickle")
    assert_fails(check(bundle), "`adapter_model.bin` is not in the manifest")


def test_a_missing_file_fails(fused: Path, tmp_path: Path) -> None:
    bundle = copy_bundle(fused, tmp_path / "bundle")
    (bundle / "adapter_config.json").unlink()
    assert_fails(check(bundle), "`adapter_config.json` is missing")


def test_what_hosts_put_beside_a_bundle_does_not_fail_it(fused: Path, tmp_path: Path) -> None:
    bundle = copy_bundle(fused, tmp_path / "bundle")
    (bundle / ".gitattributes").write_text("*.safetensors filter=lfs")
    assert check(bundle).outcome is Outcome.PASS


def test_a_manifest_that_points_out_of_the_folder_fails(fused: Path, tmp_path: Path) -> None:
    def escape(manifest: Json) -> None:
        manifest["files"]["../outside"] = manifest["files"]["README.md"]

    bundle = copy_bundle(fused, tmp_path / "bundle")
    change_manifest(bundle, escape)
    assert_fails(check(bundle), "`meteora_manifest.json` breaks its schema")


def test_a_missing_tensor_fails(fused: Path, tmp_path: Path) -> None:
    def remove(tensors: Tensors) -> None:
        del tensors[f"base_model.model.{Q_PROJ}.meteora_gate"]

    bundle = copy_bundle(fused, tmp_path / "bundle")
    change_tensors(bundle, remove)
    assert_fails(check(bundle), "the bundle lacks 1 of 42 tensors")


def test_an_own_config_altered_in_the_manifest_fails(fused: Path, tmp_path: Path) -> None:
    def alter(manifest: Json) -> None:
        member = manifest["members"][0]
        member["config_text"] = member["config_text"].replace('"lora_alpha": 8', '"lora_alpha": 9')

    bundle = copy_bundle(fused, tmp_path / "bundle")
    change_manifest(bundle, alter)
    assert_fails(check(bundle), "the config text of member `rank4` does not have the digest recorded for it")


def test_a_task_type_that_peft_refuses_fails(fused: Path, tmp_path: Path) -> None:
    bundle = copy_bundle(fused, tmp_path / "bundle")
    change_config(bundle, lambda config: config.update(task_type="TEXT_GEN"))
    assert_fails(check(bundle), 'the task type of the config is `"TEXT_GEN"`, which PEFT refuses')


def test_member_files_that_are_gone_leave_it_open(fused: Path, members: list[Member], tmp_path: Path) -> None:
    files = files_of(members) | {"rank4": MemberFiles(tmp_path / "no.json", tmp_path / "no.safetensors")}
    record = verify_bundle(fused, level=Level.SOURCE, sources=files)
    assert record.outcome is Outcome.INCONCLUSIVE
    assert record.unchecked == ("the own files of member `rank4` were not found",)


def test_factors_changed_where_no_token_looks_fail_at_level_source(
    fused: Path, members: list[Member], tmp_path: Path
) -> None:
    # The tokens of a verification are known: here A changes by rows that are orthogonal to all of them.
    def change(tensors: Tensors) -> None:
        A = tensors[f"base_model.model.{DOWN_PROJ}.meteora_A"]
        tokens = [random_tokens(DOWN_PROJ, ROUTED_TOKENS, A.shape[1])]
        tokens += [random_tokens(f"{DOWN_PROJ}:{index}", FORCED_TOKENS, A.shape[1]) for index in range(5)]
        blind = torch.linalg.svd(torch.cat(tokens).double())[2][-1]
        A[:8] += 3 * blind.float()

    bundle = copy_bundle(fused, tmp_path / "bundle")
    change_tensors(bundle, change)
    assert_fails(
        check(bundle, members), f"`{DOWN_PROJ}`: the factors of `rank8` are not those of its own files"
    )


def test_factors_changed_where_no_input_looks_fail_at_level_source(tmp_path: Path) -> None:
    # More rows of A than inputs: a change of B along what A never gives leaves B A as it is.
    folder = make_adapter(
        tiny_llama, tmp_path / "wide", seed=1, base="org/base", r=40, target_modules=["q_proj"]
    )
    members = read_members({"wide": folder})
    bundle = fuse(members, tmp_path / "bundle", top_k=1)

    def change(tensors: Tensors) -> None:
        A = tensors[f"base_model.model.{Q_PROJ}.meteora_A"]
        blind = torch.linalg.svd(A.double())[0][:, -1]
        tensors[f"base_model.model.{Q_PROJ}.meteora_B"] += torch.outer(blind, torch.ones(32)).float()

    change_tensors(bundle, change)
    record = check(bundle, members)
    assert record.problems == (f"`{Q_PROJ}`: the factors of `wide` are not those of its own files",)


def swap_layers(path: str) -> str:
    return (
        path.replace("layers.0", "layers.x").replace("layers.1", "layers.0").replace("layers.x", "layers.1")
    )


def test_a_renaming_that_only_the_bundle_knows_of_is_not_believed(tmp_path: Path) -> None:
    folder = make_adapter(
        tiny_llama, tmp_path / "one", seed=1, base="org/base", r=4, target_modules=["q_proj"]
    )
    members = read_members({"one": folder})
    bundle = fuse(members, tmp_path / "bundle")

    def swap(tensors: Tensors) -> None:
        old = dict(tensors)
        tensors.update({swap_layers(name): tensor for name, tensor in old.items()})

    def rename(manifest: Json) -> None:
        paths = [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]
        manifest["members"][0]["renamed_modules"] = {path: swap_layers(path) for path in paths}

    change_tensors(bundle, swap)
    change_manifest(bundle, rename)
    assert_fails(
        check(bundle, members), "renames a module of `one` to `model.layers.0.self_attn.q_proj`, which it has"
    )


def test_a_renaming_needs_the_base_as_its_witness(members: list[Member], tmp_path: Path) -> None:
    old_names = members[0].inventory.by_path
    renamed = {path: f"language_model.{path}" for path in old_names}
    shapes = {renamed[path]: (module.in_features, module.out_features) for path, module in old_names.items()}
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    write_bundle(plan_of(members[:1], base_modules=BaseModules(shapes, renamed)), members[:1], bundle)
    record = check(bundle, members)
    assert record.outcome is Outcome.INCONCLUSIVE
    assert record.unchecked == ("that the base renamed the modules of member `rank4`",)
    witnessed = verify_bundle(bundle, level=Level.SOURCE, sources=files_of(members), renamed=renamed)
    assert witnessed.outcome is Outcome.PASS, witnessed.problems


def test_one_true_renaming_does_not_vouch_for_a_false_one(members: list[Member], tmp_path: Path) -> None:
    old_names = members[0].inventory.by_path
    renamed = {path: f"language_model.{path}" for path in old_names}
    shapes = {renamed[path]: (module.in_features, module.out_features) for path, module in old_names.items()}
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    write_bundle(plan_of(members[:1], base_modules=BaseModules(shapes, renamed)), members[:1], bundle)
    known = dict(list(renamed.items())[:1])
    record = verify_bundle(bundle, level=Level.SOURCE, sources=files_of(members), renamed=known)
    assert record.outcome is Outcome.INCONCLUSIVE
    assert record.unchecked == ("that the base renamed the modules of member `rank4`",)


@pytest.mark.parametrize("eps", ["added", "clamped"])
def test_the_eps_of_a_normalised_gate_is_added_to_the_norm(
    fused: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eps: str
) -> None:
    def normalise(config: Json) -> None:
        # Large beside the tokens' norm of about 6, or nothing would show.
        data = [{"member": name, "sha256": "0" * 64, "samples": 1} for name in LLAMA_MEMBERS]
        fitted = {"method": "lda", "data": data}
        config["gate"] |= {"kind": "normalised", "eps": 1.0, "initialisation": None, "fitted": fitted}

    def clamped(x: Tensor, gate: Tensor, bias: Tensor | None, *, kind: str, eps: float) -> Tensor:
        return x @ gate.T / x.norm(dim=1, keepdim=True).clamp_min(eps)

    bundle = copy_bundle(fused, tmp_path / "bundle")
    change_config(bundle, normalise)
    if eps == "clamped":
        monkeypatch.setattr(arithmetic, "gate_logits", clamped)
        assert_fails(check(bundle), "the routed output is off by")
    else:
        assert check(bundle).outcome is Outcome.PASS


def test_each_member_is_widened_once_for_all_backends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {
        name: make_adapter(tiny_llama, tmp_path / name, seed=seed, dtype=torch.bfloat16, base="org/base", r=4)
        for seed, name in enumerate(("one", "two", "three"))
    }
    members = read_members(folders)
    bundle = fuse(members, tmp_path / "bundle", gate="normal")
    widened: list[MemberFactors] = []
    real = MemberFactors.widened

    def count(factors: MemberFactors) -> MemberFactors:
        widened.append(factors)
        return real(factors)

    monkeypatch.setattr(MemberFactors, "widened", count)
    for given in (None, members):
        record = check(bundle, given)
        assert {run.compute_dtype for run in record.backends_run} == {"float32", "bfloat16"}
        assert len(widened) == len(members) * len(record.modules)
        widened.clear()


def test_a_wrong_softmax_is_caught(fused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_flat(logits: torch.Tensor, top_k: int, *, temperature: float) -> Routing:
        return select_top_k(logits, top_k, temperature=1000 * temperature)

    monkeypatch.setattr(arithmetic, "select_top_k", too_flat)
    assert_fails(check(fused), "the routed output is off by")


def test_a_wrong_choice_of_members_is_caught(fused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lowest(logits: torch.Tensor, top_k: int, *, temperature: float) -> Routing:
        return select_top_k(-logits, top_k, temperature=temperature)

    monkeypatch.setattr(arithmetic, "select_top_k", lowest)
    assert_fails(check(fused), "tokens were routed to members that are not the top ones")


def test_a_record_is_never_written_through_a_link(fused: Path, tmp_path: Path) -> None:
    bundle = copy_bundle(fused, tmp_path / "bundle")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in (".verification.json.partial", "verification.json"):
        (bundle / name).symlink_to(victim)
        write_record(bundle, check(bundle))
        assert victim.read_text() == "mine"
        assert not (bundle / "verification.json").is_symlink()
        (bundle / "verification.json").unlink()


def test_a_linked_folder_in_a_bundle_fails(fused: Path, tmp_path: Path) -> None:
    bundle = copy_bundle(fused, tmp_path / "bundle")
    (bundle / "extra").symlink_to(tmp_path)
    assert_fails(check(bundle), "`extra` is not in the manifest")


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(fused: Path, tmp_path: Path) -> None:
    bundle = copy_bundle(fused, tmp_path / "bundle")
    (bundle / "meteora_manifest.json").unlink()
    os.mkfifo(bundle / "meteora_manifest.json")
    with pytest.raises(SourceUnreadable, match="is not a regular file"):
        check(bundle)


def test_triton_is_run_on_one_module_when_asked_for(fused: Path) -> None:
    record = verify_bundle(fused, level=Level.INTEGRITY, with_triton=True)
    assert record.outcome is Outcome.PASS
    run = next((run for run in record.backends_run if run.backend == "triton"), None)
    if run is None:
        reason = next(skip.reason for skip in record.backends_not_run if skip.backend == "triton")
        assert "triton" in reason
    else:
        assert run.modules == 1
        assert run.max_error is not None and run.max_error <= 1e-5


def test_digests_made_right_again_pass(fused: Path, tmp_path: Path) -> None:
    # The control of the tests above: tampering's own bookkeeping is not what fails them.
    bundle = copy_bundle(fused, tmp_path / "bundle")
    change_tensors(bundle, lambda tensors: None)
    make_digests_right(bundle)
    assert check(bundle).outcome is Outcome.PASS
