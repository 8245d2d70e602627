"""Every rule that refuses has a test beside this one that shows what it refuses for.

Such a test names its rules: ``@pytest.mark.rule("MR121", "MR321")``, on the test or on one of its cases.
Rules of a policy are left out: they refuse what a team does not want, not what does harm. So are the rules
about vLLM, which `tests/vllm` shows on a real engine.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from meteora_registry.inspection.methods import VARIANT_OPTIONS
from meteora_registry.inspection.rules.all_rules import all_rules
from meteora_registry.schemas.finding import Effect, Severity

REFUSING = {
    rule.code
    for rule in all_rules()
    if rule.severity is Severity.REFUSE and rule.effect not in (Effect.POLICY, Effect.NOT_SERVED)
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


def marks_of_tests() -> Iterator[pytest.Mark]:
    """Return every mark on a test of this folder."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for name, found in vars(importlib.import_module(f"evidence.{path.stem}")).items():
            if name.startswith("test_"):
                yield from getattr(found, "pytestmark", ())


def cases_of(mark: pytest.Mark) -> Iterator[tuple[tuple[object, ...], set[str]]]:
    """Return the arguments and the rules of each case of a parametrised test."""
    if mark.name == "parametrize":
        for case in mark.args[1]:
            named = {code for each in getattr(case, "marks", ()) if each.name == "rule" for code in each.args}
            yield getattr(case, "values", (case,)), named


def rules_shown() -> set[str]:
    """Return the rules that a test or one of its cases names."""
    marks = list(marks_of_tests())
    by_tests = {code for mark in marks if mark.name == "rule" for code in mark.args}
    return by_tests.union(*(codes for mark in marks for _, codes in cases_of(mark)))


def test_tests_show_every_refusing_rule_and_no_other() -> None:
    assert rules_shown() == REFUSING - NOT_SHOWN.keys()


def test_rules_that_are_not_shown_refuse() -> None:
    assert NOT_SHOWN.keys() <= REFUSING


def test_every_variant_is_run_or_has_a_reason() -> None:
    values = [value for mark in marks_of_tests() for case, _ in cases_of(mark) for value in case]
    run = {option for value in values if isinstance(value, dict) for option in value} & VARIANT_OPTIONS.keys()
    assert run.isdisjoint(VARIANTS_WITHOUT_RUN)
    assert run | VARIANTS_WITHOUT_RUN.keys() == VARIANT_OPTIONS.keys()
