"""Answers in order, in a config: what makes no sense, and what is required."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meteora_registry.schemas.answer_order import MAX_LINE_TOKENS
from meteora_registry.schemas.bundle import BundleConfig
from meteora_registry.schemas.errors import InvalidDocument

ANSWERS = {"rule": "in-order", "tokens": {"\n": [3, 4], "1": [5], "x\n": [6], " .": [7]}}


def config_of(
    answers: dict[str, Any] | None, *, scope: str = "segment", requires: bool = True
) -> BundleConfig:
    gate: dict[str, Any] = {
        "kind": "normalised",
        "scope": scope,
        "bias": True,
        "eps": 1e-6,
        "sources": {},
        "initialisation": None,
        "fitted": {"method": "imported", "data": []},
    }
    value = {
        "peft_type": "METEORA",
        "meteora_format": 1,
        "required_features": ["gate-answers"] * requires + ["gate-scope"],
        "task_type": None,
        "base_model_name_or_path": "org/base",
        "revision": None,
        "inference_mode": True,
        "target_modules": ["a.q"],
        "members": [{"name": name, "rank": 4, "scaling": 1.0, "overrides": {}} for name in ("one", "two")],
        "rank_alignment": 8,
        "top_k": 1,
        "temperature": 1.0,
        "gate": gate if answers is None else gate | {"answers": answers},
    }
    return BundleConfig.read(json.dumps(value).encode())


def test_config_with_answers_in_order_comes_back_and_one_without_has_no_key() -> None:
    config = config_of(ANSWERS)
    assert config.gate.answers is not None
    assert config.gate.answers.tokens["\n"] == (3, 4)
    assert config.gate.features == ("gate-answers", "gate-scope")
    assert BundleConfig.read(config.to_bytes()) == config
    assert b'"answers"' not in config_of(None, requires=False).to_bytes()


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ({"rule": "by-size"}, "'in-order'"),
        ({"tokens": {}}, "at least 1 item"),
        ({"tokens": {"one": [1]}}, "pattern"),
        ({"tokens": {"1" * 17: [1]}}, "16"),
        ({"tokens": {"1": [-1]}}, "greater than or equal to 0"),
        ({"tokens": {"1": [1], "2": [1]}}, "`tokens` gives a token two texts"),
        (
            {"tokens": {"1": [*range(MAX_LINE_TOKENS + 1)]}},
            "`tokens` has 65537 tokens, expected at most 65536",
        ),
    ],
    ids=["rule", "empty", "letters", "long", "negative", "twice", "many"],
)
def test_order_that_makes_no_sense_is_refused(answers: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        config_of(ANSWERS | answers)
    assert problem in str(caught.value)


def test_order_without_its_scope_or_its_feature_is_refused() -> None:
    with pytest.raises(InvalidDocument, match="`answers` goes with the scope `segment`, found `prompt`"):
        config_of(ANSWERS, scope="prompt")
    with pytest.raises(InvalidDocument, match="the gate needs `gate-answers` in `required_features`"):
        config_of(ANSWERS, requires=False)
