"""Metrics, intervals and means against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from meteora_registry.schemas.evaluation import Interval, Metric
from meteora_registry.scores.intervals import interval_of, mean_of_tasks
from meteora_registry.scores.metrics import Expected, judge_of, problem_of


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [(" MCM\n", "MCM", 1), ("MCM.", "MCM", 0), ("mcm", "MCM", 0), ("", "MCM", 0), ("M CM", "MCM", 0)],
)
def test_exact_match_leaves_nothing_out_but_space_at_the_ends(
    answer: str, expected: str, score: float
) -> None:
    assert judge_of("exact")(answer, Expected((expected,))) == score


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
        ("17", "1", 0),
        ("北京是首都", "北京", 1),
    ],
)
def test_accuracy_is_of_the_longest_label_that_the_answer_begins_with(
    answer: str, expected: str, score: float
) -> None:
    labels = ["Yes", "no", "not", "not sure", "+", "-1", "1", "北京"]
    assert judge_of("accuracy", labels)(answer, Expected((expected,))) == score


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
    assert judge_of("rouge")(answer, Expected((expected,))) == pytest.approx(score)


@pytest.mark.parametrize(
    ("metric", "answer", "expected", "score"),
    [
        ("normalised", ' "New  York". ', "new york", 1),
        ("normalised", "New York City", "New York", 0),
        ("normalised", "...", "...", 1),
        ("contains", "The answer is: Seven!", "seven", 1),
        ("contains", "17 apples", "7", 0),
        ("contains", "17 of 7", "7", 1),
        ("contains", "sevenfold", "seven", 0),
        ("contains", "'Twas (B) of course", "(B)", 1),
        ("contains", "", "seven", 0),
        ("contains", "答案是北京。", "北京", 1),
        ("contains", "答案是北京。", "东京", 0),
        ("contains", "คำตอบคือกรุงเทพครับ", "กรุงเทพ", 1),
        ("contains", "第17页", "7", 0),
        ("contains", "共7个", "7", 1),
        ("contains", "\uff11\uff17", "\uff17", 0),
        ("contains", "๑๗", "๗", 0),
        ("contains", "서울은 수도", "서울", 1),
        ("yes-no", " Yes, because it rains.", "yes: the rain", 1),
        ("yes-no", "**No**", "No. It is dry.", 1),
        ("yes-no", "Yesterday it was", "yes", 0),
        ("yes-no", "It is. Yes.", "yes", 0),
        ("yes-no", "nothing", "no", 0),
        ("likelihood", "b", "b", 1),
        ("likelihood", "b ", "b", 0),
        ("likelihood-per-byte", "a", "b", 0),
    ],
)
def test_answer_is_judged_by_its_metric(metric: Metric, answer: str, expected: str, score: float) -> None:
    assert judge_of(metric)(answer, Expected((expected,))) == score


@pytest.mark.parametrize("metric", ["exact", "normalised", "contains", "accuracy", "rouge", "bleu"])
def test_best_of_several_right_answers_counts(metric: Metric) -> None:
    if metric in ("rouge", "bleu"):
        pytest.importorskip({"rouge": "rouge_score", "bleu": "sacrebleu"}[metric])
    judge = judge_of(metric, ["seven", "7", "eight"])
    assert judge("7", Expected(("seven", "7"))) == pytest.approx(1.0)
    assert judge("eight", Expected(("seven", "7"))) == 0.0


def test_accuracy_takes_the_labels_of_an_item_with_choices() -> None:
    judge = judge_of("accuracy", ["the cat", "the dog"])
    item = Expected(("the cat",), ("the cat", "the cat and the dog"))
    assert judge("The cat.", item) == 1
    assert judge("The cat and the dog", item) == 0
    assert judge("The cat and the dog", Expected(("the cat",))) == 1


def test_bleu_is_that_of_sacrebleu_as_a_share() -> None:
    pytest.importorskip("sacrebleu", reason="needs sacrebleu")
    judge = judge_of("bleu")
    answer, right = "the cat sat on the mat today", "the cat sat on the mat"
    # Precisions of 1 to 4 words: 6/7, 5/6, 4/5, 3/4; the answer is longer, so nothing is taken off.
    product = (6 / 7) * (5 / 6) * (4 / 5) * (3 / 4)
    assert judge(answer, Expected((right,))) == pytest.approx(product**0.25)
    assert judge(right, Expected((right,))) == 1.0
    assert judge("", Expected((right,))) == 0.0


@pytest.mark.parametrize(
    ("metric", "expected", "problem"),
    [
        ("likelihood", Expected(("a",)), "has no `choices`, which the metric `likelihood` compares"),
        ("likelihood-per-byte", Expected(("a",), ("b", "c")), "has `choices` without the right answer"),
        ("yes-no", Expected(("maybe",)), "has an answer that begins neither with yes nor with no"),
    ],
    ids=["no-choices", "not-among-them", "neither"],
)
def test_item_that_a_metric_cannot_judge_is_known(metric: Metric, expected: Expected, problem: str) -> None:
    found = problem_of(metric, expected)
    assert found is not None
    assert found.startswith(problem)


def test_item_that_a_metric_can_judge_has_no_problem() -> None:
    assert problem_of("likelihood", Expected(("a", "d"), ("a", "b"))) is None
    assert problem_of("yes-no", Expected(("yes", "No, but"))) is None
    assert problem_of("exact", Expected(("a",))) is None


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
