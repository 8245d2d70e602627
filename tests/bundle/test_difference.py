"""Two bundles against each other: configs, members, gates by the members' names, and decisions."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from meteora_registry.bundle import Bundle
from meteora_registry.bundle.difference import compare_bundles
from meteora_registry.fuser.refit import NewGates, refit_bundle
from meteora_registry.schemas.bundle import QUANTILES, WEIGHTS_FILE, HeldOut, RequestGates
from meteora_registry.schemas.difference import BundleDifference
from meteora_registry.schemas.errors import BundleRefused
from support.members import draw_gates, fuse, read_member
from support.small_adapters import make_adapter

GOLDEN = Path(__file__).parents[1] / "golden" / "1" / "bundles"
QUERY = "model.layers.0.self_attn.q_proj"


def compare(first: Path, second: Path) -> BundleDifference:
    return compare_bundles(Bundle.open(first), Bundle.open(second), names=("first", "second"))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: make_adapter(folder / name, seed=seed) for seed, name in enumerate(("one", "two", "three"))}


@pytest.fixture(scope="module")
def fused(adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    members = [read_member(adapters[name]) for name in ("one", "two")]
    return fuse(members, tmp_path_factory.mktemp("bundles") / "fused")


def refit(source: Path, folder: Path, *, held_out: HeldOut | None = None, **changes: Any) -> Path:
    """Write the bundle with random gates; with ``held_out`` one module has a request gate."""
    bundle = Bundle.open(source)
    new = draw_gates(bundle, {}, scope="prompt")
    if held_out is not None:
        request = RequestGates(
            modules=(QUERY,),
            background=("general",),
            forms=("plain",),
            template=None,
            centre=0.0,
            spread=1.0,
            quantiles=tuple(float(place) for place in range(QUANTILES)),
            held_out=held_out,
        )
        rows = torch.arange(3 * bundle.shapes[QUERY][0], dtype=torch.float32).reshape(3, -1)
        values = (rows * changes.pop("request_scale", 1.0), torch.zeros(3), torch.eye(2))
        new = replace(new, gate=new.gate.model_copy(update={"request": request}), request={QUERY: values})
    new = replace(new, **changes)
    folder.mkdir()
    refit_bundle(bundle, new, folder)
    return folder


def held_out(right: int, **more: Any) -> HeldOut:
    values: dict[str, Any] = {
        "prompts": 100,
        "right": right,
        "abstain": None,
        "own_left": None,
        "general_prompts": 0,
        "general_left": None,
    }
    return HeldOut(**values | more)


def test_bundle_is_the_same_as_its_copy(fused: Path, tmp_path: Path) -> None:
    found = compare(fused, shutil.copytree(fused, tmp_path / "copy"))
    assert found.is_same
    assert (found.config, found.held_out) == ((), ())
    assert {each.change for each in (*found.members, *found.gates)} == {"same"}


def test_fit_changes_gates_and_no_member() -> None:
    found = compare(GOLDEN / "normal", GOLDEN / "fitted-token")
    assert not found.is_same
    assert {member.change for member in found.members} == {"same"}
    assert {"gate.kind", "gate.fitted"} <= {change.key for change in found.config}
    assert {gate.change for gate in found.gates if gate.delta} == {"changed"}


def test_change_of_a_gate_is_that_of_its_rows_and_bias(fused: Path, tmp_path: Path) -> None:
    first = refit(fused, tmp_path / "first")
    new = draw_gates(Bundle.open(fused), {}, scope="prompt")
    gate, bias = new.values[QUERY]
    second = refit(fused, tmp_path / "second", values={**new.values, QUERY: (gate * 1.5, bias * 3)})
    changed = [each for each in compare(first, second).gates if each.change != "same"]
    assert [each.path for each in changed] == [QUERY]
    before = np.concatenate([gate.numpy().ravel(), bias.numpy()]).astype(np.float64)
    after = np.concatenate([gate.numpy().ravel() * 1.5, bias.numpy() * 3]).astype(np.float64)
    assert changed[0].delta is not None
    assert changed[0].delta.relative == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before))


def test_gates_are_compared_by_the_names_of_members(
    adapters: dict[str, Path], fused: Path, tmp_path: Path
) -> None:
    turned = fuse([read_member(adapters[name]) for name in ("two", "one")], tmp_path / "turned")
    one, other = refit(fused, tmp_path / "a"), refit(turned, tmp_path / "b")
    tensors = load_file(one / WEIGHTS_FILE)
    own = load_file(other / WEIGHTS_FILE)
    gates = {name: tensor[::-1].copy() for name, tensor in tensors.items() if "meteora_gate" in name}
    save_file(own | gates, other / WEIGHTS_FILE, {"meteora_format": "1"})
    found = compare(one, other)
    assert {gate.change for gate in found.gates} == {"same"}


def test_members_that_were_added_removed_and_changed_are_named(
    adapters: dict[str, Path], fused: Path, tmp_path: Path
) -> None:
    retrained = make_adapter(tmp_path / "two", seed=9, rank=8)
    second = fuse([read_member(retrained), read_member(adapters["three"])], tmp_path / "second")
    found = compare(fused, second)
    members = {member.name: member for member in found.members}
    assert {name: member.change for name, member in members.items()} == {
        "one": "removed",
        "two": "changed",
        "three": "added",
    }
    facts = {change.key for change in members["two"].facts}
    assert {"weights_sha256", "config_sha256", "rank", "scaling"} <= facts


def test_gate_that_takes_another_routing_is_removed(fused: Path, tmp_path: Path) -> None:
    first = refit(fused, tmp_path / "first")
    value = "model.layers.0.self_attn.v_proj"
    shared: NewGates = draw_gates(Bundle.open(fused), {value: QUERY}, scope="prompt")
    second = refit(fused, tmp_path / "second", gate=shared.gate)
    found = compare(first, second)
    assert [(gate.path, gate.change, gate.delta) for gate in found.gates if gate.change != "same"] == [
        (value, "removed", None)
    ]
    assert f"gate.sources.{value}" in [change.key for change in found.config]


def test_decisions_on_held_out_prompts_are_compared(fused: Path, tmp_path: Path) -> None:
    first = refit(fused, tmp_path / "first", held_out=held_out(90, own_left=3))
    second = refit(fused, tmp_path / "second", held_out=held_out(97), request_scale=2.0)
    found = compare(first, second)
    assert [(each.what, each.first, each.second, each.second_of) for each in found.held_out] == [
        ("own prompts given to their member", 90, 97, 100)
    ]
    (gate,) = (each for each in found.gates if each.kind == "request gate")
    assert gate.delta is not None
    assert gate.delta.relative == pytest.approx(1.0)


def test_manifest_of_other_members_is_refused(fused: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(fused, tmp_path / "copy")
    path = copy / "meteora_manifest.json"
    value = json.loads(path.read_text())
    value["members"][0]["name"] = "stranger"
    path.write_text(json.dumps(value))
    with pytest.raises(BundleRefused, match="other members in its manifest"):
        compare(fused, copy)
