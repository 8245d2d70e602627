"""The defects as PEFT loads them: the base's answer, a wrong one, or an error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open

from support.defects import WEIGHT_DEFECTS, Defect
from support.evidence import (
    EQUAL,
    VISIBLE,
    base_logits,
    defect_of_rule,
    defective_files,
    difference,
    good_logits,
    peft_logits,
)

# What is wrong with a file that the library of safetensors does not read.
UNREADABLE = {f"MR{number}" for number in range(201, 211)}


@pytest.mark.parametrize(
    "name",
    [
        defect_of_rule("MR303", "prefix-none"),
        defect_of_rule("MR303", "prefix-module"),
        defect_of_rule("MR303", "prefix-doubled"),
        defect_of_rule("MR303", "prefix-fsdp"),
        defect_of_rule("MR303", "prefix-foreign"),
        defect_of_rule("MR329", "adapter-name-inside"),
        defect_of_rule("MR329", "base-layer-inside"),
        defect_of_rule("MR329", "name-without-weight"),
        defect_of_rule("MR302", "kohya"),
        defect_of_rule("MR302", "comfyui"),
        defect_of_rule("MR302", "lora-down"),
        defect_of_rule("MR304", "prefix-unknown"),
        defect_of_rule("MR301", "no-lora"),
        defect_of_rule("MR301", "full-model"),
    ],
)
def test_peft_answers_with_the_base_where_names_are_not_its_own(name: str, tmp_path: Path) -> None:
    found = peft_logits(defective_files(name), tmp_path)
    assert difference(found, base_logits()) < EQUAL or name == "lora-down"
    assert difference(found, good_logits()) > VISIBLE


@pytest.mark.parametrize(
    "name",
    [
        defect_of_rule("MR112", "alpha-missing"),
        defect_of_rule("MR306", "a-alone"),
        defect_of_rule("MR306", "b-alone"),
        defect_of_rule("MR134", "targets-narrower"),
        defect_of_rule("MR134", "targets-of-a-name"),
        defect_of_rule("MR134", "layers-left-out"),
        defect_of_rule("MR330", "dora"),
        defect_of_rule("MR330", "kasa_config"),
        defect_of_rule("MR111", "rank-missing"),
        defect_of_rule("MR113", "pattern-alpha-zero"),
        defect_of_rule("MR310", "int8"),
        defect_of_rule("MR310", "float8"),
        defect_of_rule("MR107", "rslora-text"),
        defect_of_rule("MR304", "path-unusable"),
        defect_of_rule("MR328", "factor-named-otherwise"),
        # Without the pattern the scale is another one, which is what PEFT's answer is compared with.
        defect_of_rule("MR115", "pattern-look-ahead"),
    ],
)
def test_peft_is_wrong_or_fails(name: str, tmp_path: Path) -> None:
    try:
        found = peft_logits(defective_files(name), tmp_path)
    except (RuntimeError, ValueError, TypeError, ZeroDivisionError):
        return
    assert difference(found, good_logits()) > VISIBLE


@pytest.mark.parametrize(
    "name",
    [
        defect_of_rule("MR111", "rank-zero"),
        defect_of_rule("MR111", "rank-text"),
        defect_of_rule("MR119", "rank-unlike-tensors"),
        defect_of_rule("MR119", "rank-pattern-unlike-tensors"),
        defect_of_rule("MR112", "alpha-text"),
        defect_of_rule("MR125", "initialisation-unknown"),
        defect_of_rule("MR114", "targets-broken"),
        defect_of_rule("MR101", "type-missing"),
        defect_of_rule("MR106", "task-unknown"),
        defect_of_rule("MR108", "bias-unknown"),
        defect_of_rule("MR108", "initialisation-corda"),
        defect_of_rule("MR330", "token-indices"),
        defect_of_rule("MR102", "type-unknown"),
        defect_of_rule("MR102", "type-lower-case"),
        defect_of_rule("MR014", "config-list"),
        defect_of_rule("MR013", "config-no-json"),
        defect_of_rule("MR013", "config-empty"),
        defect_of_rule("MR308", "swapped"),
        defect_of_rule("MR308", "transposed"),
        defect_of_rule("MR307", "one-dimension"),
        defect_of_rule("MR307", "zero-size"),
        defect_of_rule("MR308", "ranks-disagree"),
        defect_of_rule("MR201", "weights-lfs"),
        defect_of_rule("MR204", "weights-empty"),
        defect_of_rule("MR210", "weights-truncated"),
        defect_of_rule("MR138", "layers-beside-text"),
        defect_of_rule("MR133", "targets-number"),
        defect_of_rule("MR001", "config-missing"),
        defect_of_rule("MR011", "config-lfs"),
        defect_of_rule("MR011", "config-html"),
        defect_of_rule("MR003", "weights-missing"),
        defect_of_rule("MR005", "sharded"),
        defect_of_rule("MR104", "type-bundle"),
    ],
)
def test_peft_stops_with_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        peft_logits(defective_files(name), tmp_path)
    assert not isinstance(caught.value, AssertionError)


@pytest.mark.parametrize(
    "each",
    [
        pytest.param(defect, marks=pytest.mark.rule(*UNREADABLE.intersection(defect.codes)), id=defect.name)
        for defect in WEIGHT_DEFECTS
        if UNREADABLE.intersection(defect.codes)
    ],
)
def test_the_library_of_safetensors_does_not_read_what_the_rules_call_unreadable(
    each: Defect, tmp_path: Path
) -> None:
    folder = defective_files(each.name).write(tmp_path)
    with (
        pytest.raises(SafetensorError),
        safe_open(folder / "adapter_model.safetensors", framework="pt") as opened,
    ):
        opened.keys()


@pytest.mark.rule("MR401")
def test_nan_in_one_layer_may_give_finite_wrong_logits(tmp_path: Path) -> None:
    found = peft_logits(defective_files("nan"), tmp_path)
    assert not torch.equal(found.nan_to_num(1e9), good_logits())


def test_untrained_adapter_does_nothing(tmp_path: Path) -> None:
    assert difference(peft_logits(defective_files("untrained"), tmp_path), base_logits()) < EQUAL
