"""The file of an evaluation's run: what was answered so far, a line at a time, as JSON Lines.

The first line states what all others depend on; then a line for each task before its first answers, and a
line for each batch of answers. An evaluation that is given the file again asks only what is missing.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from .bundle import ModulePath
from .digest import Digest
from .document import Count, Document, PositiveCount, leaving_out
from .evaluation import EvaluatedTask, Mode, Share
from .names import Name

RUN_BEGINS = b'{"meteora_run":1'
# Of the longest answers, with the counts of thousands of modules.
MAX_RUN_LINE_BYTES = 64 << 20
# Positions of the prompt, and of the answer, that are counted one by one; later ones count in the totals
# only.
MAX_POSITIONS = 128
# Thirty years, so that sums of them are finite.
_MAX_SECONDS = 1e9
# Sums of float32 weights may miss the number of tokens by their last digits.
_WEIGHT_TOLERANCE = 1e-3


class RunSettings(Document):
    """The settings that all answers of a run share; ``base_sha256`` is the digest of the base."""

    meteora_run: Literal[1]
    manifest_sha256: Digest | None
    base_sha256: Digest
    batch_size: PositiveCount
    device: str
    dtype: str
    versions: dict[str, str]


class PositionCount(Document):
    """Tokens at one place of prompt or answer, and how often a module chose rightly there."""

    answer: bool
    position: Annotated[Count, Field(lt=MAX_POSITIONS)]
    tokens: PositiveCount
    hits: Count


class RoutingCounts(Document):
    """The routing of one batch.

    Attributes:
        tokens: how many were read.
        hits: of each module, how many of them went to the task's own member.
        weights: how much weight each member took over all tokens, in the bundle's order, as the mean over
            modules.
        positions: the same by place, over all modules.
        confidence: of the decisions about its prompts, if there were any.
        left: how many prompts were left to the base.
    """

    tokens: PositiveCount
    hits: dict[ModulePath, Count] = Field(min_length=1)
    weights: tuple[Annotated[FiniteFloat, Field(ge=0)], ...]
    positions: tuple[PositionCount, ...]
    confidence: tuple[Share, ...]
    left: Count

    @model_validator(mode="after")
    def _check_no_token_counts_twice(self) -> Self:
        by_place = sum(each.tokens for each in self.positions)
        for what, found, most in (
            ("hits in a module", max(self.hits.values()), self.tokens),
            ("tokens by position", by_place, self.tokens),
            ("hits by position", sum(each.hits for each in self.positions), by_place * len(self.hits)),
            ("weight", sum(self.weights), self.tokens * (1 + _WEIGHT_TOLERANCE)),
            ("prompts left to the base", self.left, len(self.confidence)),
        ):
            if found > most:
                raise ValueError(f"{self.tokens} tokens have {what} of {found}, expected at most {most}")
        return self


class AnsweredBatch(Document):
    """The answers to one batch of a task's items in one mode.

    Attributes:
        mode: who answered.
        member: whose task it is.
        number: of the batch in the task, from 0.
        items: the places of its items among those of the task, from 0.
        answers: one for each item; by likelihood, the choice that was taken.
        scores: one for each item.
        seconds: of the generation alone.
        prompt_tokens: tokens read.
        new_tokens: tokens written.
        peak_memory_bytes: as in ``Cost``.
        routing: None in a mode that does not route.
    """

    mode: Mode
    member: Name
    number: Count
    items: tuple[Count, ...] = Field(min_length=1)
    answers: tuple[str, ...]
    scores: tuple[Share, ...]
    seconds: Annotated[FiniteFloat, Field(ge=0, le=_MAX_SECONDS)]
    prompt_tokens: PositiveCount
    new_tokens: Count
    peak_memory_bytes: Count | None
    routing: RoutingCounts | None

    @model_validator(mode="after")
    def _check_every_item_is_answered(self) -> Self:
        if not len(self.items) == len(self.answers) == len(self.scores):
            raise ValueError(
                f"batch {self.number} of `{self.member}` has {len(self.items)} items, {len(self.answers)} "
                f"answers and {len(self.scores)} scores"
            )
        return self

    @property
    def key(self) -> tuple[Mode, str, int]:
        """Which batch of a run it is."""
        return self.mode, self.member, self.number


class RunLine(Document):
    """A line behind the first: how a task is asked, or a batch of answers."""

    task: EvaluatedTask | None = None
    batch: AnsweredBatch | None = None

    _leave_out = leaving_out("task", "batch")

    @model_validator(mode="after")
    def _check_one_is_there(self) -> Self:
        if (self.task is None) == (self.batch is None):
            raise ValueError("expected either a `task` or a `batch`")
        return self


def to_line(document: Document) -> bytes:
    """Return a document as one line of ASCII, without its end; keys in the order of the fields."""
    return json.dumps(document.model_dump(mode="json"), separators=(",", ":")).encode("ascii")
