"""Every rule that refuses, and the test that shows what it refuses for.

A rule that is not in one of these tables fails here. Rules of a policy are left out: they refuse what
a team does not want, not what does harm.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

from meteora_registry.inspection.methods import VARIANT_OPTIONS
from meteora_registry.inspection.rules.catalogue import all_rules
from meteora_registry.schemas.finding import Effect, Severity
from support.defects import DEFECTS

FILES = ("test_defects_under_peft.py", "test_more_than_factors.py")
STOPS = "test_peft_stops_with_an_error"
WRONG = "test_peft_is_wrong_or_fails"
BASE = "test_peft_answers_with_the_base_where_names_are_not_its_own"
NO_FILE = "test_file_that_is_no_safetensors_file_is_none_for_its_own_library"
NOT_ALONE = "test_factors_alone_are_not_the_adapter"


@dataclass(frozen=True)
class Shown:
    """The test; ``case`` is the one of its cases that is meant: a defect's name, or an id."""

    test: str
    case: str | None = None


SHOWN = {
    "MR001": Shown(STOPS, "config-missing"),
    "MR002": Shown("test_link_makes_an_adapter_of_what_lies_elsewhere"),
    "MR003": Shown(STOPS, "weights-missing"),
    "MR004": Shown("test_pickle_runs_what_it_carries"),
    "MR005": Shown(STOPS, "sharded"),
    "MR006": Shown("test_index_leads_its_reader_out_of_the_folder"),
    "MR011": Shown(STOPS, "config-lfs"),
    "MR013": Shown(STOPS, "config-no-json"),
    "MR014": Shown(STOPS, "config-list"),
    "MR101": Shown(STOPS, "type-missing"),
    "MR102": Shown(STOPS, "type-lower-case"),
    "MR103": Shown("test_another_method_leaves_nothing_to_fuse"),
    "MR104": Shown(STOPS, "type-bundle"),
    "MR107": Shown(WRONG, "rslora-text"),
    "MR111": Shown(STOPS, "rank-zero"),
    "MR112": Shown(WRONG, "alpha-missing"),
    "MR113": Shown(WRONG, "pattern-alpha-zero"),
    "MR114": Shown(STOPS, "targets-broken"),
    # Without the pattern the scale is another one, which is what PEFT's answer is compared with.
    "MR115": Shown(WRONG, "pattern-look-ahead"),
    "MR118": Shown("test_hostile_pattern_hangs_the_engine_that_loaders_use"),
    "MR119": Shown(STOPS, "rank-unlike-tensors"),
    "MR121": Shown("test_dora_without_its_flag_is_silently_wrong"),
    "MR122": Shown(NOT_ALONE, "bias-all"),
    "MR123": Shown(NOT_ALONE, "pissa"),
    "MR125": Shown(STOPS, "initialisation-unknown"),
    "MR126": Shown("test_variant_computes_something_else", "alora"),
    "MR127": Shown("test_parameters_of_experts_are_no_linear_modules"),
    "MR128": Shown(NOT_ALONE, "tokens"),
    "MR129": Shown(NOT_ALONE, "modules-to-save"),
    "MR130": Shown("test_head_of_a_classifier_is_part_of_the_adapter"),
    "MR133": Shown(STOPS, "targets-number"),
    "MR136": Shown("test_vocabulary_layers_of_a_config_carry_a_delta"),
    "MR138": Shown(STOPS, "layers-beside-text"),
    "MR201": Shown(STOPS, "weights-lfs"),
    **{f"MR{number}": Shown(NO_FILE) for number in range(202, 211) if number != 203},
    "MR203": Shown("test_pickle_runs_what_it_carries"),
    "MR301": Shown(BASE, "full-model"),
    "MR302": Shown(BASE, "kohya"),
    "MR304": Shown(BASE, "prefix-unknown"),
    "MR305": Shown("test_factor_that_stands_twice_may_be_the_other"),
    "MR306": Shown(WRONG, "a-alone"),
    "MR307": Shown(STOPS, "zero-size"),
    "MR308": Shown(STOPS, "ranks-disagree"),
    "MR309": Shown("test_convolution_has_no_matrix_product"),
    "MR310": Shown(WRONG, "int8"),
    "MR321": Shown("test_dora_without_its_flag_is_silently_wrong"),
    "MR322": Shown(NOT_ALONE, "lora-bias"),
    "MR323": Shown(NOT_ALONE, "modules-to-save"),
    "MR324": Shown(NOT_ALONE, "output-layer"),
    "MR325": Shown(NOT_ALONE, "tokens"),
    "MR326": Shown("test_expert_modules_of_older_files_are_gone"),
    "MR327": Shown("test_variant_computes_something_else", "kasa"),
    "MR328": Shown(WRONG, "factor-named-otherwise"),
    "MR401": Shown("test_nan_in_one_layer_may_give_finite_wrong_logits"),
    "MR402": Shown("test_product_that_overflows_spoils_every_output"),
    "MR501": Shown("test_modules_that_the_base_lacks_are_dropped"),
    "MR502": Shown("test_shapes_of_another_base_are_a_raw_error"),
    "MR503": Shown("test_module_that_is_not_linear_cannot_be_adapted"),
    "MR506": Shown("test_resized_vocabulary_is_a_raw_error"),
    "MR508": Shown("test_delta_of_a_tied_layer_changes_two_layers"),
    "MR601": Shown("test_shapes_of_another_base_are_a_raw_error"),
    "MR602": Shown("test_adapter_on_another_base_of_equal_shapes_is_silently_wrong"),
    # It repeats what another rule found in one of several adapters.
    "MR603": Shown("test_variant_computes_something_else", "alora"),
}

NOT_SHOWN = {
    "MR012": "a bound on time and memory: loaders parse a config of any size",
    "MR211": "a bound on time and memory: loaders read a header of any length",
}

# Options of MR126 that nothing here can run; the rule itself is shown by the others.
VARIANTS_WITHOUT_RUN = {
    "use_qalora": "takes effect on GPTQ weights only, for which a kernel for GPUs is needed",
    "arrow_config": "is written for a router over several loaded adapters, and does not load by itself",
    "megatron_config": "needs the package megatron-core",
}


def read_sources() -> dict[str, str]:
    """The source of every test of the files, with its decorators."""
    found = {}
    for name in FILES:
        text = (Path(__file__).parent / name).read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                begin = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                found[node.name] = "\n".join(lines[begin - 1 : node.end_lineno])
    return found


def test_every_refusing_rule_is_in_the_table() -> None:
    refusing = {
        rule.code
        for rule in all_rules()
        if rule.severity is Severity.REFUSE and rule.effect is not Effect.POLICY
    }
    assert refusing == SHOWN.keys() | NOT_SHOWN.keys()
    assert SHOWN.keys().isdisjoint(NOT_SHOWN)


@pytest.mark.parametrize("code", SHOWN)
def test_damage_of_rule_is_shown_by_a_test(code: str) -> None:
    shown = SHOWN[code]
    source = read_sources()[shown.test]
    if shown.case is not None:
        assert f'"{shown.case}"' in source
    if shown.test in (STOPS, WRONG, BASE):
        assert code in next(each for each in DEFECTS if each.name == shown.case).codes


def test_every_variant_is_run_or_has_a_reason() -> None:
    sources = "\n".join(read_sources().values())
    run = {option for option in VARIANT_OPTIONS if f'"{option}"' in sources or f"{option}=" in sources}
    assert run.isdisjoint(VARIANTS_WITHOUT_RUN)
    assert run | VARIANTS_WITHOUT_RUN.keys() == VARIANT_OPTIONS.keys()
