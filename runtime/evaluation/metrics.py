"""The metrics that judge an answer: a score from 0 to 1 for every item.

- ``exact``: 1 if the answer is the expected text, white space at both ends aside. For answers that are one
  string and no other: an extraction, a conversion, a number.
- ``accuracy``: 1 if the answer begins with the expected label and with no longer one of the task's labels.
  For classification and choices, where a model may add a word after the label.
- ``rouge``: the F measure of ROUGE-L (Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004)
  by Google's ``rouge-score``, with its stemmer. For free text in the Latin alphabet, all that its
  tokenizer knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ...schemas.errors import MissingDependency
from ...schemas.evaluation import Metric

# Takes an answer and the expected text.
Judge = Callable[[str, str], float]

_OPENING = "\"'`([{*\u201c\u2018"
_CLOSING = "\"'`)]}*.,:;!?\u201d\u2019"


def judge_of(metric: Metric, labels: Iterable[str]) -> Judge:
    """Return the judge of one task's answers.

    Args:
        metric: the measure.
        labels: the expected texts of all of the task's samples; read by ``accuracy`` alone.

    Raises:
        MissingDependency: ``rouge`` without ``rouge-score``.
    """
    if metric == "exact":
        return lambda answer, expected: float(answer.strip() == expected.strip())
    if metric == "accuracy":
        return _judge_label(sorted({_plain(label) for label in labels}, key=len, reverse=True))
    return _rouge()


def _judge_label(longest_first: Sequence[str]) -> Judge:
    def judge(answer: str, expected: str) -> float:
        found = next((label for label in longest_first if _begins_with(_plain(answer), label)), None)
        return float(found == _plain(expected))

    return judge


def _plain(text: str) -> str:
    words = " ".join(text.casefold().split())
    # A label that is nothing but such marks stays what it is.
    return words.lstrip(_OPENING).rstrip(_CLOSING) or words


def _begins_with(answer: str, label: str) -> bool:
    following = answer[len(label) : len(label) + 1]
    return answer.startswith(label) and not (label[-1:].isalnum() and following.isalnum())


def _rouge() -> Judge:
    try:
        # The package has no types.
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        if error.name != "rouge_score":
            raise
        raise MissingDependency(
            "the metric `rouge` needs `rouge-score`, which is not installed",
            extra="eval",
        ) from error
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return lambda answer, expected: float(scorer.score(expected, answer)["rougeL"].fmeasure)
