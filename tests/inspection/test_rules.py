"""The rules as a whole: complete, named once, documented, and in step with PEFT."""

from __future__ import annotations

import importlib.util
from dataclasses import fields
from pathlib import Path

import pytest
from peft import LoraConfig, PeftType, TaskType

from meteora_registry.inspection.config import KNOWN_FIELDS, TASK_TYPES
from meteora_registry.inspection.methods import OTHER_METHODS
from meteora_registry.inspection.rules.all_rules import all_rules, find_rule
from meteora_registry.inspection.rules.rule import Observation, Observations, examine, rule
from meteora_registry.schemas.errors import UsageError
from meteora_registry.schemas.finding import Effect, Severity

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_every_rule_says_everything() -> None:
    for each in all_rules():
        assert all((each.title, each.why, each.remedy)), each.code
        assert each.title[0].isupper() or each.title[0] == "`"
        assert not each.title.endswith(".")
        assert (each.severity is Severity.REFUSE) == (each.effect is not Effect.NONE)
    names = [each.name for each in all_rules()]
    assert len(set(names)) == len(names)


def test_page_of_rules_is_current() -> None:
    spec = importlib.util.spec_from_file_location("generate_rules", DOCS / "generate_rules.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert (DOCS / "rules.md").read_text(encoding="utf-8") == generator.render()


def test_rules_are_found_by_code_in_any_case() -> None:
    assert find_rule("mr112").name == "alpha-is-unusable"
    with pytest.raises(UsageError, match="there is no rule `MR999`"):
        find_rule("MR999")


def test_code_is_given_once() -> None:
    with pytest.raises(ValueError, match="the code `MR111` is taken by the rule `rank-is-unusable`"):
        rule("MR111", str, Severity.NOTE, why="", remedy="")


def test_places_of_one_reason_are_counted_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meteora_registry.inspection.rules.rule._RULES", {})

    @rule("MR999", int, Severity.NOTE, why="why", remedy="remedy")
    def everywhere(reasons: int) -> Observations:
        """Something is everywhere."""
        for number in range(3 * reasons):
            yield Observation(f"place {number}", "none", reason=str(number % reasons))

    assert [each.found for each in examine(2)] == [
        "place 0 (and 2 more places)",
        "place 1 (and 2 more places)",
    ]
    found = examine(25)
    assert len(found) == 20
    assert found[-1].found == "place 19 (and 17 more places)"


def test_each_field_is_a_reason_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meteora_registry.inspection.rules.rule._RULES", {})

    @rule("MR999", int, Severity.NOTE, why="why", remedy="remedy")
    def fields_are_wrong(count: int) -> Observations:
        """Fields are wrong."""
        yield from (Observation("x", "y", field=f"alpha_pattern.{number}") for number in range(count))
        yield Observation("x", "y", field="r")

    assert [each.found for each in examine(4)] == ["x (and 3 more places)", "x"]


def test_known_fields_are_those_of_peft() -> None:
    assert {each.name for each in fields(LoraConfig)} == KNOWN_FIELDS


def test_known_methods_and_tasks_are_those_of_peft() -> None:
    assert {each.value for each in PeftType} - {"LORA"} == OTHER_METHODS - {"BONE"}
    assert {each.value for each in TaskType} == TASK_TYPES
