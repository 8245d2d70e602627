"""Two adapters against each other: configs, modules, and the parts that no delta describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from meteora_registry.inspection.adapter import inspect_adapter
from meteora_registry.inspection.difference import AdapterFiles, compare_adapters, compare_values
from meteora_registry.schemas.bundle import CONFIG_FILE, WEIGHTS_FILE
from meteora_registry.schemas.difference import AdapterDifference, ValueChange
from meteora_registry.schemas.errors import AdapterRefused
from support.small_adapters import make_adapter

PREFIX = "base_model.model.model.layers"


def compare(first: Path, second: Path) -> AdapterDifference:
    files = (AdapterFiles(each.name, inspect_adapter(each), each / WEIGHTS_FILE) for each in (first, second))
    return compare_adapters(*files)


def dense(folder: Path, path: str, scaling: float) -> Any:
    tensors = load_file(folder / WEIGHTS_FILE)
    a, b = (tensors[f"base_model.model.{path}.lora_{factor}.weight"].astype(np.float64) for factor in "AB")
    return scaling * b @ a


def edit_config(folder: Path, **changes: Any) -> Path:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_modules_are_compared_by_their_own_ranks_and_scalings(tmp_path: Path) -> None:
    first = make_adapter(tmp_path / "first", targets=("q_proj", "o_proj"), layers=1, dtype="float16")
    second = make_adapter(
        tmp_path / "second",
        seed=1,
        targets=("q_proj", "k_proj"),
        layers=1,
        rank=6,
        alpha=5,
        rslora=True,
        rank_pattern={"q_proj": 9},
        alpha_pattern={"q_proj": 3},
    )
    found = compare(first, second)
    path = "model.layers.0.self_attn.q_proj"
    modules = {module.path: module for module in found.modules}
    assert {each: module.change for each, module in modules.items()} == {
        path: "changed",
        "model.layers.0.self_attn.k_proj": "added",
        "model.layers.0.self_attn.o_proj": "removed",
    }
    module = modules[path]
    assert module.first and module.second and module.delta
    assert (module.first.rank, module.first.scaling) == (4, 2.0)
    assert (module.second.rank, module.second.scaling) == (9, 1.0)
    one, other = dense(first, path, 2.0), dense(second, path, 1.0)
    assert module.delta.relative == pytest.approx(np.linalg.norm(other - one) / np.linalg.norm(one))
    assert module.delta.cosine == pytest.approx(
        np.sum(one * other) / np.linalg.norm(one) / np.linalg.norm(other)
    )


def test_largest_change_comes_first(tmp_path: Path) -> None:
    first = make_adapter(tmp_path / "first", targets=("q_proj",), layers=3)
    second = make_adapter(tmp_path / "second", targets=("q_proj",), layers=3)
    tensors = load_file(second / WEIGHTS_FILE)
    for layer, factor in ((0, 1.1), (2, 1.5)):
        tensors[f"{PREFIX}.{layer}.self_attn.q_proj.lora_B.weight"] *= factor
    save_file(tensors, second / WEIGHTS_FILE)
    found = compare(first, second)
    changes = [(module.path.split(".")[2], module.change, module.delta) for module in found.modules]
    assert [each[:2] for each in changes] == [("2", "changed"), ("0", "changed"), ("1", "same")]
    relative = [delta.relative for _, _, delta in changes if delta]
    assert relative == [pytest.approx(0.5), pytest.approx(0.1, rel=1e-5), 0.0]


def test_same_bytes_are_the_same(tmp_path: Path) -> None:
    first = make_adapter(tmp_path / "first")
    found = compare(first, make_adapter(tmp_path / "second"))
    assert found.is_same
    assert {module.change for module in found.modules} == {"same"}
    assert (found.config, found.tensors, found.undescribed) == ((), (), ())


def test_order_of_targets_is_not_a_change(tmp_path: Path) -> None:
    first = make_adapter(tmp_path / "first")
    second = edit_config(make_adapter(tmp_path / "second"), target_modules=["v_proj", "q_proj"])
    found = compare(first, second)
    assert (found.config, found.is_same) == ((), False)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param({"r": 8}, {"r": 16}, [("r", "changed", 8, 16)], id="value"),
        pytest.param({}, {"r": None}, [("r", "added", None, None)], id="null is not absent"),
        pytest.param({"a": 1}, {"a": True}, [("a", "changed", 1, True)], id="true is not one"),
        pytest.param({"a": 1}, {"a": 1.0}, [("a", "changed", 1, 1.0)], id="spelling"),
        pytest.param(
            {"rank_pattern": {"q": 1, "k": 2}},
            {"rank_pattern": {"q": 3}},
            [("rank_pattern.k", "removed", 2, None), ("rank_pattern.q", "changed", 1, 3)],
            id="pattern",
        ),
        pytest.param({"x": [1, 2]}, {"x": [2, 1]}, [("x", "changed", [1, 2], [2, 1])], id="list"),
        pytest.param({"modules_to_save": ["a", "b"]}, {"modules_to_save": ["b", "a"]}, [], id="set"),
        pytest.param(
            {"target_modules": ["a"]},
            {"target_modules": "a"},
            [("target_modules", "changed", ["a"], "a")],
            id="kind",
        ),
    ],
)
def test_values_of_configs_are_compared_key_by_key(
    first: dict[str, Any], second: dict[str, Any], expected: list[tuple[Any, ...]]
) -> None:
    assert list(compare_values(first, second)) == [
        ValueChange(key=key, change=change, first=one, second=other) for key, change, one, other in expected
    ]


def test_parts_beside_the_deltas_are_named(tmp_path: Path) -> None:
    first = make_adapter(tmp_path / "first", layers=1, use_dora=True)
    second = make_adapter(tmp_path / "second", layers=1, use_dora=True)
    for folder, value in ((first, 1.0), (second, 2.0)):
        tensors = load_file(folder / WEIGHTS_FILE)
        for kind, size in (("q_proj", 32), ("v_proj", 16)):
            tensors[f"{PREFIX}.0.self_attn.{kind}.lora_magnitude_vector"] = np.full(
                size, value if kind == "q_proj" else 1.0, "float32"
            )
        if folder == second:
            tensors["base_model.model.score.weight"] = np.ones((2, 4), "float32")
        save_file(tensors, folder / WEIGHTS_FILE)
    found = compare(first, second)
    assert [
        (each.name.removeprefix("base_model.model."), each.kind, each.change) for each in found.tensors
    ] == [
        ("model.layers.0.self_attn.q_proj.lora_magnitude_vector", "DoRA magnitude", "changed"),
        ("model.layers.0.self_attn.v_proj.lora_magnitude_vector", "DoRA magnitude", "same"),
        ("score.weight", "full weight", "added"),
    ]
    parts = {part.code: (part.in_first, part.in_second) for part in found.undescribed}
    assert parts["MR121"] == (True, True)
    assert parts["MR323"] == (False, True)


def test_other_base_is_reported(tmp_path: Path) -> None:
    first = make_adapter(tmp_path / "first", base="gpt2")
    assert compare(first, make_adapter(tmp_path / "same", base="openai-community/gpt2")).same_base
    assert not compare(first, make_adapter(tmp_path / "other", base="org/other")).same_base


def test_module_of_another_shape_is_not_measured(tmp_path: Path) -> None:
    first = make_adapter(tmp_path / "first", targets=("q_proj",), layers=1)
    second = make_adapter(tmp_path / "second", targets=("q_proj",), layers=1)
    tensors = load_file(second / WEIGHTS_FILE)
    tensors[f"{PREFIX}.0.self_attn.q_proj.lora_B.weight"] = np.ones((40, 4), "float32")
    save_file(tensors, second / WEIGHTS_FILE)
    (module,) = compare(first, second).modules
    assert (module.change, module.delta) == ("changed", None)
    assert compare(first, second).delta is None


def test_adapter_of_unknown_scaling_is_compared_by_its_config_alone(tmp_path: Path) -> None:
    first = make_adapter(tmp_path / "first")
    found = compare(first, make_adapter(tmp_path / "second", lora_alpha=0))
    assert found.not_compared == "modules, ranks and scalings of second cannot be worked out"
    assert [change.key for change in found.config] == ["lora_alpha"]
    assert (found.modules, found.delta) == ((), None)


@pytest.mark.parametrize("broken", ["config", "weights", "no weights"])
def test_files_that_are_no_adapter_are_refused_with_their_findings(tmp_path: Path, broken: str) -> None:
    first, second = make_adapter(tmp_path / "first"), make_adapter(tmp_path / "second")
    if broken == "config":
        (second / CONFIG_FILE).write_text("[1]")
    elif broken == "weights":
        (second / WEIGHTS_FILE).write_bytes(b"\xff" * 100)
    else:
        (second / WEIGHTS_FILE).unlink()
    with pytest.raises(AdapterRefused, match="second cannot be compared") as caught:
        compare(first, second)
    assert caught.value.findings
