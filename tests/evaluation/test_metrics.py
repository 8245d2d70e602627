"""Metrics, intervals and means against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from meteora_registry.runtime.evaluation.metrics import judge_of
from meteora_registry.schemas.evaluation import Interval
from meteora_registry.scores.intervals import interval_of, mean_of_tasks


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [(" MCM\n", "MCM", 1), ("MCM.", "MCM", 0), ("mcm", "MCM", 0), ("", "MCM", 0), ("M CM", "MCM", 0)],
)
def test_exact_match_leaves_nothing_out_but_space_at_the_ends(
    answer: str, expected: str, score: float
) -> None:
    assert judge_of("exact", [])(answer, expected) == score


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("Yes, it is.", "yes", 1),
        ("yesterday", "yes", 0),
        ("not sure.", "not sure", 1),
        ("not sure", "not", 0),
        ("not today", "not", 1),
        ("NO", "no", 1),
        ("(no)", "no", 1),
        ("I say yes", "yes", 0),
        ("", "no", 0),
        ("+ is it", "+", 1),
        ("-1", "1", 0),
    ],
)
def test_accuracy_is_of_the_longest_label_that_the_answer_begins_with(
    answer: str, expected: str, score: float
) -> None:
    labels = ["Yes", "no", "not", "not sure", "+", "-1", "1"]
    assert judge_of("accuracy", labels)(answer, expected) == score


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("the cats sat", "the cat sat", 1.0),
        # The longest common subsequence is `a b`, of 2 words of each: P = 2/3, R = 2/4.
        ("a x b", "a b c d", 4 / 7),
        ("", "word", 0.0),
    ],
    ids=["stemmed", "part", "empty"],
)
def test_rouge_is_the_f_measure_of_the_longest_common_subsequence(
    answer: str, expected: str, score: float
) -> None:
    pytest.importorskip("rouge_score", reason="needs rouge-score")
    assert judge_of("rouge", [])(answer, expected) == pytest.approx(score)


def test_every_task_weighs_the_same() -> None:
    assert mean_of_tasks([[1.0] * 9, [0.0]]) == 0.5


def test_single_item_has_no_interval() -> None:
    assert interval_of([[1.0]]) is None
    assert interval_of([[1.0, 0.0], [1.0]]) is None


def test_items_that_agree_leave_no_doubt() -> None:
    assert interval_of([[1.0, 1.0, 1.0]]) == Interval(low=1.0, high=1.0)


def test_interval_is_that_of_the_binomial() -> None:
    # Drawing 100 items of which half are right is Binomial(100, 1/2): its 2.5 % and 97.5 % points.
    found = interval_of([[0.0, 1.0] * 50])
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.40, 0.60), abs=0.011)


def test_interval_of_a_mean_of_tasks_is_narrower_by_the_root_of_their_number() -> None:
    one, four = interval_of([[0.0, 1.0] * 50]), interval_of([[0.0, 1.0] * 50] * 4)
    assert one is not None
    assert four is not None
    assert (four.high - four.low) / (one.high - one.low) == pytest.approx(0.5, abs=0.06)


def test_same_scores_give_the_same_interval() -> None:
    scores = np.random.default_rng(1).random(30).tolist()
    assert interval_of([scores]) == interval_of([scores])
