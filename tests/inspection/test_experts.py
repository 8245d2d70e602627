"""Adapters of parameters that hold the weights of all experts: ranks and shapes for each of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from meteora_registry.inspection.adapter import Inspection, inspect_adapter
from support.adapters import codes_of
from support.expert_adapters import EXPERTS, HIDDEN, INNER, LAYER, PATH, both_parameters, write_ones


def modules_of(inspection: Inspection) -> list[tuple[str, int, int, int, int, float]]:
    assert inspection.inventory is not None
    return [
        (each.path, each.rank, each.experts, each.in_features, each.out_features, each.scaling)
        for each in inspection.inventory.modules
    ]


def test_parameters_of_one_module_have_ranks_of_their_own(tmp_path: Path) -> None:
    inspection = inspect_adapter(both_parameters(tmp_path / "both"))
    assert str(inspection.verdict) == "sound, not fusable"
    assert codes_of(inspection) == ["MR127", "MR326"]
    assert modules_of(inspection) == [
        (f"{PATH}.down_proj", 4, EXPERTS, INNER, HIDDEN, 2.0),
        (f"{PATH}.gate_up_proj", 8, EXPERTS, HIDDEN, 2 * INNER, 4.0),
    ]


@pytest.mark.parametrize("name", ["down_proj", "mlp.experts.down_proj", f"{PATH}.down_proj"])
def test_one_parameter_is_known_by_its_name(name: str, tmp_path: Path) -> None:
    tensors = {f"{LAYER}lora_A.weight": (EXPERTS * 4, INNER), f"{LAYER}lora_B.weight": (HIDDEN, EXPERTS * 4)}
    inspection = inspect_adapter(write_ones(tmp_path / "one", tensors, target_parameters=[name]))
    assert modules_of(inspection) == [(f"{PATH}.down_proj", 4, EXPERTS, INNER, HIDDEN, 2.0)]


def test_rows_that_are_no_multiple_of_the_rank_are_broken(tmp_path: Path) -> None:
    tensors = {f"{LAYER}lora_A.weight": (10, INNER), f"{LAYER}lora_B.weight": (HIDDEN, 10)}
    inspection = inspect_adapter(write_ones(tmp_path / "odd", tensors, target_parameters=["down_proj"]))
    assert "MR119" in codes_of(inspection)


def test_parameter_that_is_not_declared_is_broken(tmp_path: Path) -> None:
    tensors = {f"{LAYER}lora_A.weight": (EXPERTS * 4, INNER), f"{LAYER}lora_B.weight": (HIDDEN, EXPERTS * 4)}
    inspection = inspect_adapter(write_ones(tmp_path / "undeclared", tensors, target_modules=["q_proj"]))
    assert not inspection.verdict.sound


def test_overflow_is_that_of_one_expert_and_not_of_their_sum(tmp_path: Path) -> None:
    folder = write_ones(
        tmp_path / "large",
        {f"{LAYER}lora_A.weight": (EXPERTS * 4, INNER), f"{LAYER}lora_B.weight": (HIDDEN, EXPERTS * 4)},
        target_parameters=["down_proj"],
        lora_alpha=20_000,
    )
    # 4 terms of 5000 for each expert fit float16, 16 would not.
    assert "MR403" not in codes_of(inspect_adapter(folder))
