"""The text that a model sees: numbered questions, an empty line, and numbered lines with the answers.

An answer's line repeats its question and then, after an arrow, gives the answer: the number alone does not
show a base which task it is about, so a router could not decide by it. One question alone is
such a line up to its arrow. A composite prompt ends with the first number, and the model writes all lines
in one pass. Every piece of the text knows the item that it belongs to, so that training, forcing and
scoring see the same borders.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .tasks import TASK_NAMES, Item

ARROW = " ->"
Kind = Literal["question", "number", "again", "answer"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the text, and the place among the items of the one that it belongs to."""

    text: str
    kind: Kind
    place: int


def pieces_of(items: Sequence[Item]) -> list[Piece]:
    """Return the whole text, answers included, in pieces; one item alone is its answer's line."""
    asked = [Piece(f"{i + 1}. {item.question}\n", "question", i) for i, item in enumerate(items)]
    pieces = [*asked, Piece("\n", "question", 0)] if len(items) > 1 else []
    for i, item in enumerate(items):
        pieces.append(Piece(f"{i + 1}.", "number", i))
        pieces.append(Piece(f" {item.question}{ARROW}", "again", i))
        pieces.append(Piece(f" {item.answer}\n", "answer", i))
    return pieces


def given_pieces(items: Sequence[Item]) -> int:
    """Return how many of the pieces the model is given: all up to the first number, or to a lone arrow."""
    return 2 if len(items) == 1 else len(items) + 2


def prompt_of(items: Sequence[Item]) -> str:
    """Return what the model is given."""
    return "".join(piece.text for piece in pieces_of(items)[: given_pieces(items)])


def response_of(items: Sequence[Item]) -> str:
    """Return what the model should write after the prompt."""
    return "".join(piece.text for piece in pieces_of(items)[given_pieces(items) :])


def composites(pools: dict[str, list[Item]], size: int, count: int, seed: int) -> list[tuple[Item, ...]]:
    """Return ``count`` prompts' items, ``size`` different tasks each, in random order."""
    numbers = random.Random(f"{seed}:composite-{size}")
    return [
        tuple(numbers.choice(pools[task]) for task in numbers.sample(TASK_NAMES, size)) for _ in range(count)
    ]
