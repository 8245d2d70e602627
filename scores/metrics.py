"""The metrics that judge an answer: a score from 0 to 1 for every item.

Of all of an item's right answers the best counts.

- ``exact``: 1 if the answer is the expected text, white space at both ends aside. For answers that are one
  string and no other: an extraction, a conversion, a number.
- ``normalised``: the same with case, the width of white space, quotes, brackets and final punctuation aside.
- ``contains``: 1 if the expected text is in the answer, as whole words, with the same aside; anywhere in a
  script without spaces between words. For a base that talks around its answer.
- ``yes-no``: 1 if the first word of the answer is yes or no, as that of the expected one. For answers that
  go on with a reason.
- ``accuracy``: 1 if the answer begins with the expected label and with no longer one of the labels: the
  item's choices, or without any the expected answers of the task. For classification and choices, where a
  model may add a word after the label.
- ``likelihood``: 1 if, of the item's choices, the right one has the highest probability after the prompt,
  that of all of its tokens together. Nothing is written, so the form of an answer does not matter.
- ``likelihood-per-byte``: the same by the mean log-probability of a byte of UTF-8, so that choices of unlike
  lengths compete; lm_eval calls it ``acc_norm``.
- ``rouge``: the F measure of ROUGE-L (Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004)
  by Google's ``rouge-score``, with its stemmer. For free text in the Latin alphabet, all that its
  tokenizer knows.
- ``bleu``: BLEU of one sentence against all right answers together (Papineni et al., 2002) by ``sacrebleu``:
  tokenizer 13a, exponential smoothing, no n-grams longer than the answer. The mean of items is not the BLEU
  of a corpus. For free text and translations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import east_asian_width

from ..schemas.errors import MissingDependency
from ..schemas.evaluation import Metric

# Judged by the probability of the choices, so that no answer is written.
BY_LIKELIHOOD: frozenset[Metric] = frozenset({"likelihood", "likelihood-per-byte"})

# Of Unicode: Thai and Lao, Myanmar, Khmer.
_BLOCKS_WITHOUT_SPACES = (("\u0e00", "\u0eff"), ("\u1000", "\u109f"), ("\u1780", "\u17ff"))
_OPENING = "\"'`([{*\u201c\u2018"
_CLOSING = "\"'`)]}*.,:;!?\u201d\u2019"


@dataclass(frozen=True, slots=True)
class Expected:
    """The right answers to one item, and the choices that it offers.

    Attributes:
        answers: the right answers, at least one.
        choices: what the item offers, the right answers among them; empty if it offers nothing.
    """

    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()


# Takes an answer and what was expected.
Judge = Callable[[str, Expected], float]


def judge_of(metric: Metric, labels: Iterable[str] = ()) -> Judge:
    """Return the judge of one task's answers.

    Of the metrics ``BY_LIKELIHOOD`` the answer is the choice that was taken.

    Args:
        metric: the measure.
        labels: the expected texts of all of the task's items; read by ``accuracy`` alone, for items
            without choices.

    Raises:
        MissingDependency: ``rouge`` without ``rouge-score``, or ``bleu`` without ``sacrebleu``.
    """
    match metric:
        case "normalised":
            return _best_of(lambda answer, right: _plain(answer) == _plain(right))
        case "contains":
            return _best_of(_contains)
        case "yes-no":
            return _best_of(lambda answer, right: yes_or_no(answer) == yes_or_no(right) is not None)
        case "accuracy":
            return _label_judge(labels)
        case "rouge":
            return _rouge()
        case "bleu":
            return _bleu()
        case "exact":
            return _best_of(lambda answer, right: answer.strip() == right.strip())
        case "likelihood" | "likelihood-per-byte":
            # The answer is a choice, and two choices may differ by a space alone.
            return _best_of(lambda answer, right: answer == right)


def problem_of(metric: Metric, expected: Expected) -> str | None:
    """Return why an item cannot be judged by a metric, to follow its place in a message; None if it can."""
    if metric in BY_LIKELIHOOD:
        if len(expected.choices) < 2:
            return f"has no `choices`, which the metric `{metric}` compares: expected a list of two or more"
        if not set(expected.answers) & set(expected.choices):
            return f"has `choices` without the right answer, which the metric `{metric}` has to find there"
    if metric == "yes-no" and any(yes_or_no(answer) is None for answer in expected.answers):
        return "has an answer that begins neither with yes nor with no, which the metric `yes-no` expects"
    return None


def yes_or_no(text: str) -> str | None:
    """Return the first word of a text in lower case if that is yes or no, else None."""
    words = "".join(letter if letter.isalnum() else " " for letter in text.casefold()).split()
    return words[0] if words[:1] in (["yes"], ["no"]) else None


def _best_of(score: Callable[[str, str], float]) -> Judge:
    return lambda answer, expected: float(max(score(answer, right) for right in expected.answers))


def _label_judge(labels: Iterable[str]) -> Judge:
    of_task = _longest_first(labels)

    def judge(answer: str, expected: Expected) -> float:
        known = _longest_first((*expected.answers, *expected.choices)) if expected.choices else of_task
        found = next((label for label in known if _begins_with(_plain(answer), label)), None)
        return float(found in {_plain(right) for right in expected.answers})

    return judge


def _longest_first(labels: Iterable[str]) -> Sequence[str]:
    return sorted({_plain(label) for label in labels}, key=len, reverse=True)


def _plain(text: str) -> str:
    words = _folded(text)
    # A label that is nothing but such marks stays what it is.
    return words.lstrip(_OPENING).rstrip(_CLOSING) or words


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _begins_with(answer: str, label: str) -> bool:
    return answer.startswith(label) and not _splits_word(label[-1:], answer[len(label) : len(label) + 1])


def _contains(answer: str, right: str) -> bool:
    text, wanted = _folded(answer), _plain(right)
    place = text.find(wanted)
    while place >= 0:
        before, behind = text[:place][-1:], text[place + len(wanted) :][:1]
        if not (_splits_word(before, wanted[:1]) or _splits_word(wanted[-1:], behind)):
            return True
        place = text.find(wanted, place + 1)
    return False


def _splits_word(letter: str, following: str) -> bool:
    """Return whether a border between two characters is within a word."""
    within = letter.isalnum() and following.isalnum()
    return within and not (_is_without_spaces(letter) or _is_without_spaces(following))


def _is_without_spaces(letter: str) -> bool:
    """Return whether a letter is of a script in which no space shows where a word ends.

    Chinese and Japanese letters are wide. So are Korean ones: its particles follow a word without a space.
    Thai, Lao, Burmese and Khmer are known by their blocks.
    """
    in_block = any(first <= letter <= last for first, last in _BLOCKS_WITHOUT_SPACES)
    return letter.isalpha() and (in_block or east_asian_width(letter) == "W")


def _rouge() -> Judge:
    try:
        # The package has no types.
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise _missing("rouge", "rouge-score", error) from error
    scorer: Any = RougeScorer(["rougeL"], use_stemmer=True)
    return _best_of(lambda answer, right: float(scorer.score(right, answer)["rougeL"].fmeasure))


def _bleu() -> Judge:
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ModuleNotFoundError as error:
        raise _missing("bleu", "sacrebleu", error) from error
    scorer: Any = BLEU(effective_order=True)

    def judge(answer: str, expected: Expected) -> float:
        # sacrebleu gives an answer that is right 100.00000000000004.
        return min(float(scorer.sentence_score(answer, list(expected.answers)).score) / 100, 1.0)

    return judge


def _missing(metric: Metric, package: str, error: ModuleNotFoundError) -> MissingDependency:
    if error.name not in (package, package.replace("-", "_")):
        raise error
    return MissingDependency(f"the metric `{metric}` needs `{package}`, which is not installed", extra="eval")
