"""Comparing two evaluations: paired, by hand-made scores, and only of the same questions."""

from __future__ import annotations

from typing import Any

import pytest

from meteora_registry.schemas.errors import InvalidDocument, UsageError
from meteora_registry.schemas.evaluation import Evaluation
from meteora_registry.scores.comparison import compare
from meteora_registry.scores.intervals import interval_of
from support.evaluations import make_evaluation

HARD_AND_EASY = [0.0, 1.0] * 50


def test_same_scores_differ_by_nothing() -> None:
    first = make_evaluation({"routed": {"one": HARD_AND_EASY, "two": HARD_AND_EASY}})
    found = compare(first, first).modes[0]
    assert (found.overall.difference, found.overall.verdict) == (0.0, "not told apart")


def test_pairing_finds_what_intervals_side_by_side_cannot() -> None:
    # The second is right on five items more of a hundred.
    better = [1.0 if item < 10 else score for item, score in enumerate(HARD_AND_EASY)]
    first = make_evaluation({"routed": {"one": HARD_AND_EASY}})
    second = make_evaluation({"routed": {"one": better}}, bundle="after")
    found = compare(first, second)
    (mode,) = found.modes
    assert (found.first, found.second) == ("before", "after")
    assert (mode.first, mode.second) == (0.5, 0.55)
    assert mode.overall.difference == pytest.approx(0.05)
    assert mode.overall.verdict == "higher"
    assert compare(second, first).modes[0].overall.verdict == "lower"
    alone = [interval_of([items]) for items in (HARD_AND_EASY, better)]
    assert alone[0] is not None
    assert alone[1] is not None
    assert alone[0].high > alone[1].low


def test_every_task_is_compared_and_weighs_the_same() -> None:
    first = make_evaluation({"routed": {"one": [0.0] * 4, "two": [1.0] * 2}})
    second = make_evaluation({"routed": {"one": [1.0] * 4, "two": [0.5] * 2}})
    (mode,) = compare(first, second).modes
    assert mode.overall.difference == pytest.approx(0.25)
    differences = {member: each.difference for member, each in mode.tasks.items()}
    assert differences == {"one": 1.0, "two": -0.5}


def test_single_item_is_not_told_apart() -> None:
    first, second = (make_evaluation({"base": {"one": [score]}}) for score in (0.0, 1.0))
    overall = compare(first, second).modes[0].overall
    assert (overall.difference, overall.interval, overall.verdict) == (1.0, None, "not told apart")


def test_only_modes_of_both_are_compared() -> None:
    scores = {"one": [0.0, 1.0]}
    first = make_evaluation({"base": scores, "routed": scores})
    second = make_evaluation({"routed": scores, "arrow": scores})
    assert [mode.mode for mode in compare(first, second).modes] == ["routed"]
    with pytest.raises(UsageError) as caught:
        compare(make_evaluation({"base": scores}), second)
    assert str(caught.value) == (
        "no mode is in both evaluations: the first has `base`, the second `routed`, `arrow`"
    )


def test_two_modes_of_one_evaluation_are_compared_item_by_item() -> None:
    better = [1.0 if item < 10 else score for item, score in enumerate(HARD_AND_EASY)]
    both = make_evaluation({"member": {"one": better}, "routed": {"one": HARD_AND_EASY}})
    (found,) = compare(both, both, modes=("member", "routed")).modes
    assert (found.mode, found.against, found.first, found.second) == ("routed", "member", 0.55, 0.5)
    assert found.overall.verdict == "lower"
    (other,) = compare(both, both, modes=("routed", "member")).modes
    assert other.overall.difference == -found.overall.difference
    assert "against" not in compare(both, both).modes[0].model_dump()


def test_mode_that_was_not_evaluated_is_refused() -> None:
    both = make_evaluation({"member": {"one": [1.0]}, "routed": {"one": [1.0]}})
    with pytest.raises(UsageError) as caught:
        compare(both, both, modes=("member", "arrow"))
    assert str(caught.value) == "the second evaluation has no mode `arrow`, it has `member`, `routed`"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data_sha256": "b" * 64},
            "the task `one` has data of sha256 `aaaaaaaaaaaa` in the first and `bbbbbbbbbbbb` in",
        ),
        (
            {"metric": "accuracy"},
            "the task `one` has the metric `exact` in the first and `accuracy` in the second",
        ),
        (
            {"stop": "\n"},
            "has answers that end before `None` in the first and `'\\n'` in the second",
        ),
        (
            {"max_new_tokens": 9},
            "has answers of at most this many tokens: `8` in the first and `9` in the second",
        ),
        ({"lines": [1, 3]}, "the task `one` has 2 items in the first and 2 in the second, or other lines of"),
    ],
    ids=["data", "metric", "stop", "length", "items"],
)
def test_other_questions_are_refused(changes: dict[str, Any], message: str) -> None:
    scores = {"routed": {"one": [0.0, 1.0]}}
    with pytest.raises(UsageError) as caught:
        compare(make_evaluation(scores), make_evaluation(scores, **changes))
    assert str(caught.value).startswith("the evaluations did not ask the same: the task `one` has ")
    assert message in str(caught.value)
    assert caught.value.hint is not None


def test_other_tasks_are_refused() -> None:
    one, both = {"one": [0.0, 1.0]}, {"one": [0.0, 1.0], "two": [1.0, 1.0]}
    for pair, side in (((one, both), "second"), ((both, one), "first")):
        with pytest.raises(UsageError) as caught:
            compare(*(make_evaluation({"base": tasks}) for tasks in pair))
        assert str(caught.value) == f"only the {side} evaluation has the task `two`"


def test_evaluation_that_misses_an_item_is_refused() -> None:
    value = make_evaluation({"base": {"one": [0.0, 1.0]}}).model_dump(mode="json")
    value["tasks"][0]["lines"] = [1, 2, 3]
    with pytest.raises(InvalidDocument) as caught:
        Evaluation.from_value(value, what="evaluation.json")
    assert "mode `base` does not answer every item of every task" in str(caught.value)
