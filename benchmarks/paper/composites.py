"""Several tasks in one prompt, in three forms.

`paper` is the form of the MeteoRA paper: numbered questions, then numbered answers. `restated` begins each
answer with the first words of its question, and in `turns` every question follows the answers to those before
it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from .items import ARROW, END, Item

Form = Literal["paper", "restated", "turns"]
FORMS: tuple[Form, ...] = ("paper", "restated", "turns")
COMPOSITE_TASKS = (
    "logical_deduction",
    "question_selection",
    "strategyqa",
    "abstract_narrative_understanding",
    "goal_step_wikihow",
    "winowhy",
    "disfl_qa",
    "linguistics_puzzles",
)
PROMPTS: Mapping[tuple[str, ...], int] = {
    COMPOSITE_TASKS[:3]: 32,
    COMPOSITE_TASKS[:5]: 16,
    COMPOSITE_TASKS: 8,
}
"""The tasks of the paper's Composite-3, -5 and -10, without two of the last that cannot be had, and the
number of prompts of each."""

RESTATED_WORDS = 8
SEED = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a text, and the place among the questions of the one that it belongs to."""

    text: str
    place: int


@dataclass(frozen=True, slots=True)
class Composite:
    """Questions of different tasks in one prompt."""

    items: tuple[Item, ...]
    form: Form

    def begin(self) -> list[Piece]:
        """Return the text before anything is answered, up to where the first answer begins."""
        if self.form == "turns":
            return [Piece(self.items[0].prompt, 0)]
        asked = [Piece(f"{place + 1}. {item.question}\n", place) for place, item in enumerate(self.items)]
        return [*asked, Piece("\n", len(asked) - 1), *self.head(0)]

    def head(self, place: int) -> list[Piece]:
        """Return the text between the last answer and this one."""
        if self.form == "turns":
            return [Piece(self.items[place].prompt, place)]
        return [Piece(f"{place + 1}.", place)]

    def line(self, place: int, answer: str) -> str:
        """Return the line of an answer behind its head, with its end."""
        if self.form != "restated":
            return f" {answer}{END}"
        return f" {restated(self.items[place])}{ARROW} {answer}{END}"

    def answer_in(self, line: str) -> str:
        """Return the answer that a line gives behind its head; none where it should restate and does not."""
        text = line.partition(END)[0]
        return (text.partition(ARROW)[2] if self.form == "restated" else text).strip()

    def answers_in(self, text: str) -> list[str]:
        """Return the answer to each question in what was written behind the first head.

        Lines count by their numbers; a line without the next number belongs to none.
        """
        first, *rest = text.split(END)
        lines = {0: first}
        for line in rest:
            number, mark, behind = line.partition(".")
            if mark and number.isdecimal() and len(number) <= 2:
                lines.setdefault(int(number) - 1, behind)
        return [self.answer_in(lines.get(place, "")) for place in range(len(self.items))]


def restated(item: Item) -> str:
    """Return the first words of a question."""
    return " ".join(item.question.split()[:RESTATED_WORDS])


def shorter_half(items: Sequence[Item]) -> list[Item]:
    """Return the items whose questions are no longer than the median, so that several fit into a prompt."""
    middle = median(len(item.question) for item in items)
    return [item for item in items if len(item.question) <= middle]


def composites(pools: Mapping[str, Sequence[Item]], form: Form, count: int) -> tuple[Composite, ...]:
    """Return composites of one item of each task, in random order; of the same items for every form."""
    numbers = random.Random(f"{SEED}:{len(pools)}")
    return tuple(
        Composite(
            tuple(numbers.choice(pools[name]) for name in numbers.sample(sorted(pools), len(pools))), form
        )
        for _ in range(count)
    )
