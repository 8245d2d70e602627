from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from meteora_registry.bundle import Bundle
from meteora_registry.fuser.fuse_member import Member
from meteora_registry.schemas.errors import FuseRefused
from support import warm
from support.bundles import write_bundle as write_bundle_by_hand
from support.members import fuse, read_member, read_members
from support.models import make_adapter, tiny_llama


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_bundle_holds_each_members_factors_in_its_own_rows(fused: Path, adapters: dict[str, Path]) -> None:
    bundle = Bundle.open(fused)
    tensors = load_file(fused / "adapter_model.safetensors")
    for index, folder in enumerate(adapters.values()):
        own = load_file(folder / "adapter_model.safetensors")
        for path, layout in bundle.config.layouts.items():
            A, Bt = (tensors[f"base_model.model.{path}.meteora_{side}"] for side in "AB")
            assert not A[layout.padding_of(index)].any()
            assert not Bt[layout.padding_of(index)].any()
            if layout.ranks[index]:
                rows = layout.rows_of(index)
                assert torch.equal(A[rows], own[f"base_model.model.{path}.lora_A.weight"])
                assert torch.equal(Bt[rows].T, own[f"base_model.model.{path}.lora_B.weight"])


def test_bundle_is_the_same_bytes_every_time(members: list[Member], fused: Path, tmp_path: Path) -> None:
    again = fuse(members, tmp_path / "again", top_k=2)
    assert contents(again) == contents(fused)


def test_bundle_is_the_same_bytes_on_any_number_of_threads(
    adapters: dict[str, Path], fused: Path, tmp_path: Path
) -> None:
    script = (
        "import sys, json, pathlib, torch\n"
        "from support.members import fuse, read_members\n"
        "torch.set_num_threads(int(sys.argv[1]))\n"
        "folders = {name: pathlib.Path(path) for name, path in json.loads(sys.argv[2]).items()}\n"
        "fuse(read_members(folders), pathlib.Path(sys.argv[3]), top_k=2)\n"
    )
    folders = json.dumps({name: str(path) for name, path in adapters.items()})
    for threads in {"1", "2"} - {str(torch.get_num_threads())}:
        target = tmp_path / threads
        warm.run([sys.executable, "-c", script, threads, folders, target], check=True)
        assert contents(target) == contents(fused)


def test_bundle_names_no_local_path_and_no_time(fused: Path, tmp_path: Path) -> None:
    manifest = json.loads((fused / "meteora_manifest.json").read_bytes())
    for member in manifest["members"]:
        member.pop("config_text")
    text = (
        json.dumps(manifest) + (fused / "adapter_config.json").read_text() + (fused / "README.md").read_text()
    )
    assert str(fused.parent) not in text
    assert "/tmp" not in text
    assert "202" not in text.replace(manifest["files"]["README.md"]["sha256"], "").split("files")[0]


def test_manifest_lists_every_file_but_itself(fused: Path) -> None:
    manifest = json.loads((fused / "meteora_manifest.json").read_bytes())
    assert set(manifest["files"]) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}


def test_experts_are_the_members_own_files(members: list[Member], tmp_path: Path) -> None:
    bundle = fuse(members[:2], tmp_path / "bundle", with_experts=True)
    for member in members[:2]:
        expert = bundle / "experts" / member.name
        assert (expert / "adapter_config.json").read_bytes() == member.config_path.read_bytes()
        assert (expert / "adapter_model.safetensors").read_bytes() == member.weights_path.read_bytes()
    manifest = json.loads((bundle / "meteora_manifest.json").read_bytes())
    assert "experts/rank4/adapter_model.safetensors" in manifest["files"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_members_of_half_precision_are_stored_as_they_are(tmp_path: Path, dtype: torch.dtype) -> None:
    folders = {
        name: make_adapter(tiny_llama, tmp_path / name, seed=seed, dtype=dtype, r=4)
        for seed, name in enumerate(("one", "two"))
    }
    bundle = fuse(read_members(folders), tmp_path / "bundle")
    stored = load_file(bundle / "adapter_model.safetensors")
    own = load_file(folders["one"] / "adapter_model.safetensors")
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    assert torch.equal(stored[f"{module}.meteora_A"][:4], own[f"{module}.lora_A.weight"])
    assert stored[f"{module}.meteora_gate"].dtype == torch.float32


def test_mixed_element_types_are_stored_in_float32_without_loss(tmp_path: Path) -> None:
    folders = {
        "half": make_adapter(tiny_llama, tmp_path / "half", seed=1, dtype=torch.bfloat16, r=4),
        "full": make_adapter(tiny_llama, tmp_path / "full", seed=2, r=4),
    }
    bundle = fuse(read_members(folders), tmp_path / "bundle")
    stored = load_file(bundle / "adapter_model.safetensors")
    own = load_file(folders["half"] / "adapter_model.safetensors")
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    assert torch.equal(stored[f"{module}.meteora_A"][:4], own[f"{module}.lora_A.weight"].float())


def test_a_cast_that_loses_is_recorded_with_its_error(members: list[Member], tmp_path: Path) -> None:
    bundle = fuse(members[:2], tmp_path / "bundle", dtype="bfloat16")
    cast = json.loads((bundle / "meteora_manifest.json").read_bytes())["members"][0]["cast"]
    assert (cast["source"], cast["target"]) == (["F32"], "BF16")
    # Half a unit in the last of bf16's eight bits, relative to the largest value of the tensor.
    assert 0 < cast["max_relative_error"] <= 2**-8


def test_a_cast_that_overflows_is_refused(tmp_path: Path) -> None:
    folder = make_adapter(tiny_llama, tmp_path / "large", seed=1, r=4)
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    next(iter(tensors.values()))[0, 0] = 1e6
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(FuseRefused, match=r"has values up to 1e\+06, which F16 cannot hold"):
        fuse([read_member(folder)], tmp_path / "bundle", dtype="float16")


def test_a_plan_with_conflicts_writes_nothing(members: list[Member], tmp_path: Path) -> None:
    with pytest.raises(FuseRefused, match="these adapters cannot be fused: 1 conflict"):
        fuse(members[:2], tmp_path / "bundle", top_k=3)
    assert list((tmp_path / "bundle").iterdir()) == []


def test_bundle_agrees_with_one_written_by_hand_from_the_contract(
    adapters: dict[str, Path], fused: Path, tmp_path: Path
) -> None:
    by_hand = write_bundle_by_hand(tmp_path / "by-hand", adapters)
    ours, theirs = Bundle.open(fused).config, Bundle.open(by_hand).config
    assert ours.layouts == theirs.layouts
    assert ours.names == theirs.names
    found, expected = (load_file(folder / "adapter_model.safetensors") for folder in (fused, by_hand))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], expected[n]) for n in found if not n.endswith("meteora_gate"))
