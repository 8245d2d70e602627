"""Composites are answered, in one generation or line by line: one row for each way, size and form.

The forced oracle has each question and each answer served by the task's own member, line by line, which is
what a routing without a mistake would reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from benchmarks.gates.base import native_name
from benchmarks.gates.rows import digest_of
from benchmarks.pages import Row
from meteora_registry.runtime import route_as
from meteora_registry.runtime.evaluation.generation import Meter, generate_answers
from meteora_registry.runtime.loaded_bundle import LoadedBundle
from meteora_registry.schemas.evaluation import Metric
from meteora_registry.schemas.gate_choices import Answers, Scope
from meteora_registry.scores.metrics import Expected, judge_of

from .composites import RESTATED_WORDS, Composite, Form, Piece
from .evaluate import MORE_THAN_EXPECTED, Prepared, models_of
from .fits import SEGMENT_IN_ORDER as SEGMENT
from .items import END
from .summary import interval
from .ways import Way


@dataclass(frozen=True, slots=True)
class CompositeWay:
    """One way of serving composites.

    Attributes:
        name: in rows and tables.
        bundle: the name of its bundle, as of a ``Way``.
        scope: what one decision serves; None for the base, and for the oracle.
        answers: who decides for the numbered lines of an answer.
        kind: the base, the forced oracle, or the gates.
    """

    name: str
    bundle: str
    scope: Scope | None
    answers: Answers | None = None
    kind: Literal["base", "oracle", "routed"] = "routed"

    @property
    def loaded(self) -> Way:
        """The way of single prompts whose bundle it runs on."""
        return Way(self.name, "routed", self.bundle, self.scope)


ORACLE, IN_ORDER = "oracle", "segment, answers in order"
COMPOSITE_WAYS = (
    CompositeWay("base", SEGMENT, None, kind="base"),
    CompositeWay(ORACLE, SEGMENT, None, kind="oracle"),
    CompositeWay(IN_ORDER, SEGMENT, "segment", "in-order"),
    CompositeWay("segment, answers by text", SEGMENT, "segment", "by-text"),
    CompositeWay("prompt", "prompt", "prompt"),
    CompositeWay("token", "token", "token"),
)


@dataclass(frozen=True, slots=True)
class CompositeUnit:
    """A way that answers all composites of a size and form."""

    way: CompositeWay
    recipe: str
    form: Form
    composites: tuple[Composite, ...]
    metrics: tuple[tuple[str, Metric], ...]

    @property
    def size(self) -> int:
        """The number of questions in each prompt."""
        return len(self.composites[0].items)

    def facts(self) -> Row:
        """Return the facts of its row that are known before it is answered."""
        questions = [[item.question for item in each.items] for each in self.composites]
        return {
            "way": self.way.name,
            "size": self.size,
            "form": self.form,
            "recipe_sha256": self.recipe,
            "prompts": len(self.composites),
            "questions_sha256": digest_of([questions, self.form, RESTATED_WORDS]),
        }


def composite_unit(prepared: Prepared, unit: CompositeUnit) -> Row:
    """Return the row of a unit: for each prompt the mean score of its answers."""
    torch.manual_seed(0)
    loaded = models_of(prepared).loaded_for(unit.way.loaded)
    meter = Meter(loaded.model.device)
    metrics = dict(unit.metrics)
    scores, answered = [], 0
    for each in unit.composites:
        answers = answer(loaded, unit.way, each, meter)
        answered += sum(map(bool, answers))
        judged = [
            judge_of(metrics[item.task])(text, Expected(item.targets, item.choices))
            for text, item in zip(answers, each.items, strict=True)
        ]
        scores.append(round(sum(judged) / len(judged), 4))
    return {
        "kind": "composite",
        "members": prepared.members,
        **unit.facts(),
        "scores": scores,
        "interval": interval([scores]),
        "answered": answered,
        "seconds": round(meter.seconds, 3),
        "element_type": native_name(),
    }


def answer(loaded: LoadedBundle, way: CompositeWay, asked: Composite, meter: Meter) -> list[str]:
    """Return the answer to each question of a composite."""
    if way.kind == "oracle" or asked.form == "turns":
        return _line_by_line(loaded, way, asked, meter)
    prompt = "".join(piece.text for piece in asked.begin())
    longest = sum(_tokens(loaded, asked, place) for place in range(len(asked.items)))
    with _served(loaded, way):
        written = generate_answers(loaded, [prompt], max_new_tokens=longest, stop=None, meter=meter).texts
    return asked.answers_in(written[0])


def _line_by_line(loaded: LoadedBundle, way: CompositeWay, asked: Composite, meter: Meter) -> list[str]:
    """Return the answers of as many generations, each behind the lines that were written before it."""
    pieces, answers = asked.begin(), []
    for place in range(len(asked.items)):
        if place:
            pieces += asked.head(place)
        text = "".join(piece.text for piece in pieces)
        with _served(loaded, way, pieces, asked):
            written = generate_answers(
                loaded, [text], max_new_tokens=_tokens(loaded, asked, place), stop=END, meter=meter
            ).texts[0]
        answers.append(asked.answer_in(written))
        pieces.append(Piece(written + END, place))
    return answers


def _tokens(loaded: LoadedBundle, asked: Composite, place: int) -> int:
    """Return how many tokens an answer may have."""
    lines = [asked.line(place, target) for target in asked.items[place].targets]
    head = len(loaded.tokenizer("".join(piece.text for piece in asked.head(place))).input_ids)
    return head + max(len(loaded.tokenizer(line).input_ids) for line in lines) + MORE_THAN_EXPECTED


def _served(
    loaded: LoadedBundle, way: CompositeWay, pieces: Sequence[Piece] = (), asked: Composite | None = None
) -> AbstractContextManager[object]:
    if way.kind == "base":
        return loaded.model.disable_adapter()  # type: ignore[no-any-return]
    if way.kind == "oracle":
        assert asked is not None
        members = members_of(loaded, pieces, [item.task for item in asked.items])
        return loaded.force_tokens([members], beyond=members[-1])
    return route_as(loaded.model, scope=way.scope, answers=way.answers)


def members_of(loaded: LoadedBundle, pieces: Sequence[Piece], tasks: Sequence[str]) -> list[str | None]:
    """Return the member of each token of these pieces together: that of the piece that it ends in."""
    text = "".join(piece.text for piece in pieces)
    ends = np.cumsum([len(piece.text) for piece in pieces])
    offsets = loaded.tokenizer(text, return_offsets_mapping=True).offset_mapping
    # A token of no letters, such as one for the beginning, belongs to the first piece.
    return [tasks[pieces[int(np.searchsorted(ends, max(end, 1)))].place] for _, end in offsets]
