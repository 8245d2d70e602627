"""A bundle with other gates: nothing else changes, and the same gates give the same bytes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from meteora_registry.bundle import Bundle
from meteora_registry.fuser.fuse_member import Member
from meteora_registry.fuser.refit import NewGates, refit_bundle
from meteora_registry.fuser.verifier import verify_bundle
from meteora_registry.schemas.bundle import Fitting
from meteora_registry.schemas.errors import BundleRefused, InvalidDocument
from meteora_registry.schemas.verification import Level
from support.members import draw_gates, files_of, fuse
from support.tampering import flip_byte


def some_gates(folder: Path, *, bias: bool = True, share: bool = True) -> NewGates:
    """Return random gates for the bundle in a folder; k and v take q's routing where both are there."""
    bundle = Bundle.open(folder)
    paths = bundle.config.target_modules
    queries = {path.replace(".q_proj", f".{kind}_proj"): path for path in paths for kind in "kv"}
    sources = {path: queries[path] for path in paths if path in queries and path != queries[path]}
    return draw_gates(bundle, sources if share else {}, bias=bias)


def refit(folder: Path, new: NewGates, target: Path) -> Path:
    target.mkdir()
    refit_bundle(Bundle.open(folder), new, target)
    return target


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("share", [True, False], ids=["shared", "own"])
def test_new_gates_stand_in_the_file_and_the_factors_stay(
    fused: Path, tmp_path: Path, bias: bool, share: bool
) -> None:
    new = some_gates(fused, bias=bias, share=share)
    folder = refit(fused, new, tmp_path / "new")
    config = Bundle.open(folder).config
    assert (config.gate, config.top_k, config.temperature) == (new.gate, 1, 0.5)
    assert config.required_features == (("gate-sources",) if share else ())
    before, after = (load_file(each / "adapter_model.safetensors") for each in (fused, folder))
    expected = {name: tensor for name, tensor in before.items() if not name.endswith("meteora_gate")}
    for path in set(config.target_modules) - new.gate.sources.keys():
        rows, offsets = new.values[path]
        expected[f"base_model.model.{path}.meteora_gate"] = rows
        if bias:
            expected[f"base_model.model.{path}.meteora_gate_bias"] = offsets
    assert after.keys() == expected.keys()
    assert all(torch.equal(after[name], expected[name]) for name in expected)


def test_a_refitted_bundle_verifies_against_the_members_files(
    fused: Path, members: list[Member], tmp_path: Path
) -> None:
    folder = refit(fused, some_gates(fused), tmp_path / "new")
    record = verify_bundle(folder, level=Level.SOURCE, sources=files_of(members))
    assert (record.outcome, record.problems) == ("pass", ())


def test_the_same_gates_give_the_same_bytes(fused: Path, tmp_path: Path) -> None:
    first, second = (refit(fused, some_gates(fused), tmp_path / name) for name in ("first", "second"))
    assert [path.name for path in sorted(first.iterdir())] == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "meteora_manifest.json",
    ]
    for path in first.iterdir():
        assert (second / path.name).read_bytes() == path.read_bytes()


def test_experts_and_provenance_are_taken_over(members: list[Member], tmp_path: Path) -> None:
    old = fuse(members, tmp_path / "old", top_k=2, with_experts=True)
    new = refit(old, some_gates(old), tmp_path / "new")
    before, after = (json.loads((each / "meteora_manifest.json").read_bytes()) for each in (old, new))
    assert before["members"] == after["members"]
    experts = {name for name in before["files"] if name.startswith("experts/")}
    assert len(experts) == 2 * len(members)
    assert {name: before["files"][name] for name in experts} == {
        name: after["files"][name] for name in experts
    }
    assert all((new / name).read_bytes() == (old / name).read_bytes() for name in experts)


def test_the_card_states_the_new_sizes_and_the_fit(fused: Path, tmp_path: Path) -> None:
    folder = refit(fused, some_gates(fused), tmp_path / "new")
    tensors = load_file(folder / "adapter_model.safetensors").values()
    card, old = ((each / "README.md").read_text() for each in (folder, fused))
    assert f"{sum(tensor.nbytes for tensor in tensors)} bytes of tensors" in card
    padding = next(part for part in old.split(", ") if "of them padding" in part)
    assert padding in card
    assert "The gate is fitted: by hand. It saw samples: 3 of `rank4`" in card
    assert "picks the top 1 of 5 adapters" in card
    assert "Its gates are then fitted by `gate fit`." in card
    assert "Its gates are then fitted" not in old
    assert "top_k = 1\n" in card


def test_a_damaged_bundle_is_refused(fused: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(fused, broken)
    flip_byte(broken / "adapter_model.safetensors", -1)
    with pytest.raises(BundleRefused, match=r"is damaged: `adapter_model\.safetensors` has digest"):
        refit(broken, some_gates(fused), tmp_path / "new")


def test_a_module_without_a_new_gate_is_refused(fused: Path, tmp_path: Path) -> None:
    new = some_gates(fused)
    path = next(iter(new.values.keys() - new.gate.sources.keys()))
    fewer = replace(new, values={key: value for key, value in new.values.items() if key != path})
    with pytest.raises(BundleRefused) as caught:
        refit(fused, fewer, tmp_path / "new")
    assert str(caught.value) == f"there are no new values for the gate of `{path}`"


def test_data_of_other_members_are_refused(fused: Path, tmp_path: Path) -> None:
    new = some_gates(fused)
    fitted = Fitting(method="by hand", data=())
    with pytest.raises(InvalidDocument, match="a fitted gate names the data of every member in order"):
        refit(fused, replace(new, gate=new.gate.model_copy(update={"fitted": fitted})), tmp_path / "new")
