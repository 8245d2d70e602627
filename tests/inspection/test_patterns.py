from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from meteora_registry.inspection.config import LoraConfig, Resolution
from meteora_registry.inspection.patterns import Budget, Pattern, PatternList, PatternsTooCostly, Standing

PARTS = ["model", "layers", "0", "1", "11", "self_attn", "q_proj", "v_proj", "qxproj"]
PATHS = st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map(".".join)
PIECES = [*PARTS, r"\.", ".", ".*", r"\d+", "(?:q|v)_proj", "[01]", "^model", "q_proj$", "(0|11)", "_?", ""]
PATTERNS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join)


@given(patterns=st.lists(PATTERNS, max_size=4, unique=True), path=PATHS)
def test_first_match_is_the_one_peft_takes(patterns: list[str], path: str) -> None:
    budget = Budget()
    with budget.running():
        ours = PatternList([Pattern.judge(text) for text in patterns]).first(path, budget)
    assert (ours.text if ours else path) == get_pattern_key(patterns, path)


@given(data=st.data(), path=PATHS)
def test_pattern_made_from_a_path_matches_as_peft_matches_it(data: st.DataObject, path: str) -> None:
    parts = path.split(".")
    kept = parts[data.draw(st.integers(0, len(parts) - 1)) :]
    disguises = [
        lambda part: part,
        lambda part: f"({part}|x)",
        lambda part: f"[{part[0]}]{part[1:]}",
        lambda part: ".+",
    ]
    text = r"\.".join(data.draw(st.sampled_from(disguises))(part) for part in kept)
    budget = Budget()
    with budget.running():
        ours = PatternList([Pattern.judge(text)]).first(path, budget)
    assert (ours.text if ours else path) == get_pattern_key([text], path) == text


@given(pattern=PATTERNS, path=PATHS)
def test_whole_match_is_that_of_re(pattern: str, path: str) -> None:
    assert Pattern.judge(pattern).matches(path) == bool(re.fullmatch(pattern, path))


@pytest.mark.parametrize(
    ("text", "standing"),
    [
        ("q_proj", Standing.PLAIN),
        ("model.layers.0.q_proj", Standing.PLAIN),
        (r".*\.q_proj", Standing.REGULAR),
        ("(q_proj", Standing.BROKEN),
        ("a**", Standing.BROKEN),
        ("(?!vision).*q_proj", Standing.UNSUPPORTED),
        (r"(a)\1", Standing.UNSUPPORTED),
        (r"q\Z", Standing.UNSUPPORTED),
        ("[[:alpha:]]", Standing.UNSUPPORTED),
        ("a{,3}", Standing.UNSUPPORTED),
        ("(?i:Q_PROJ)", Standing.UNSUPPORTED),
        ("((a{1,900}){1,900}){1,900}", Standing.UNSUPPORTED),
        ("\ud800", Standing.UNSUPPORTED),
        ("a|" * 2000, Standing.TOO_LONG),
        ("(" * 60 + "a" + ")" * 60, Standing.TOO_LONG),
    ],
    ids=lambda value: str(value).encode("unicode_escape").decode()[:30],
)
def test_standing_of_a_pattern(text: str, standing: Standing) -> None:
    assert Pattern.judge(text).standing is standing


@pytest.mark.parametrize(
    ("text", "nests"),
    [
        ("(a+)+", True),
        ("(?:.*)*x", True),
        ("((ab)*c){2,}", True),
        (r"(\d+\.)*q", True),
        ("(a|b)*", False),
        (r"(?:model\.)?layers\.\d+\.(q|v)_proj", False),
        (r"\(a+\)+", False),
        ("[(a+)]+", False),
        ("(?:.*?(?:vision|text).*?(?:attn|mlp).*?)", False),
    ],
)
def test_repeated_repeats_are_seen(text: str, nests: bool) -> None:
    assert Pattern.judge(text).nests_repeats is nests


@pytest.mark.parametrize("text", ["(a+)+$", "(x+x+)+y", "(.*)*x", "((((.*)*)*)*)*x", "(?:a?){400}a{400}"])
def test_hostile_pattern_has_an_answer(text: str) -> None:
    config = LoraConfig({"r": 8, "lora_alpha": 8, "rank_pattern": {text: 4}})
    paths = [f"model.layers.{number}." + "a" * 40 + "x" * 40 + "!" for number in range(100)]
    assert len(Resolution.of(config, {path: path for path in paths}).ranks) in (0, 100)


def test_spent_budget_ends_the_search() -> None:
    budget = Budget(seconds=-1)
    with budget.running(), pytest.raises(PatternsTooCostly):
        PatternList([Pattern.judge("a")]).first("b", budget)
    with budget.running():
        assert Pattern.judge("a.*", budget).standing is Standing.TOO_COSTLY
        assert Pattern.judge("a", budget).standing is Standing.PLAIN
    config = LoraConfig({"r": 8, "lora_alpha": 8, "rank_pattern": {"a": 4}}, Budget(seconds=-1))
    assert Resolution.of(config, {"b": "b"}) == Resolution({}, {}, frozenset(), is_complete=False)


def test_pattern_for_every_module_of_a_large_model_is_found_in_time() -> None:
    """EVA writes a rank for each module by its whole path."""
    names = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")
    paths = [f"model.layers.{layer}.{name}" for layer in range(126) for name in names]
    ranks = {path: 1 + number % 9 for number, path in enumerate(paths)}
    config = LoraConfig({"r": 4, "lora_alpha": 8, "rank_pattern": ranks, "alpha_pattern": ranks})
    resolution = Resolution.of(config, {path: path for path in paths})
    assert resolution.is_complete
    assert resolution.ranks == ranks
