"""An evaluation: what a bundle's members, its routing and plain baselines scored on the same task data.

A mode states which members serve the tokens. All modes answer the same items of every member's task, so
any two modes, of one evaluation or of two, are compared item by item. ``data_sha256`` of a task is the
digest of its whole file; with the items' lines it shows whether two evaluations asked the same.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, FiniteFloat, SerializerFunctionWrapHandler, model_serializer, model_validator

from .bundle import ModulePath
from .digest import Digest
from .document import Count, Document, PositiveCount, leaving_out
from .gate_choices import PromptForm, Scope, forms_of
from .names import Name

MAX_EVALUATION_BYTES = 256 << 20

Metric = Literal[
    "exact",
    "normalised",
    "contains",
    "yes-no",
    "accuracy",
    "likelihood",
    "likelihood-per-byte",
    "rouge",
    "bleu",
]
DEFAULT_METRIC: Metric = "exact"
# base: no adapter; member: the task's own, for every token; routed: by the bundle's own rule; the scopes:
# by its gates with another scope; arrow: by gates computed from the factors alone; uniform: all, 1/L each.
Mode = Literal["base", "member", "routed", Scope, "arrow", "uniform"]
MODES: tuple[Mode, ...] = ("base", "member", "routed", *get_args(Scope), "arrow", "uniform")
DEFAULT_MODES: tuple[Mode, ...] = ("base", "member", "routed", "arrow", "uniform")
UNROUTED: frozenset[Mode] = frozenset({"base", "member", "uniform"})

Share = Annotated[FiniteFloat, Field(ge=0, le=1)]


class Interval(Document):
    """A 95 % interval of the bootstrap."""

    low: FiniteFloat
    high: FiniteFloat


class EvaluatedTask(Document):
    """One member's task: its data, how answers are judged, and where an answer ends at the latest.

    ``stop`` is the text before which an answer was cut, None if there was none. With the form ``both`` every
    line is asked twice: ``lines`` has those of the plain prompts, and then again those in the template.
    ``header_sha256`` is the digest of a text before every prompt, None if there was none.
    """

    member: Name
    data_sha256: Digest
    samples: PositiveCount
    lines: tuple[PositiveCount, ...] = Field(min_length=1)
    metric: Metric
    max_new_tokens: PositiveCount
    stop: str | None
    form: PromptForm = "given"
    header_sha256: Digest | None = None

    # An evaluation of the lines as they are keeps the bytes it had before there was a choice.
    _leave_out = leaving_out("form", "header_sha256")

    @property
    def forms(self) -> tuple[PromptForm, ...]:
        """The forms in which the items are asked; each has the same number of items, in this order."""
        return forms_of(self.form)


class TaskScore(Document):
    """The scores of one mode on one task: item by item, in the order of the task's ``lines``.

    ``interval`` is None for a single item.
    """

    member: Name
    score: Share
    interval: Interval | None
    items: tuple[Share, ...] = Field(min_length=1)
    answers: tuple[str, ...]

    @model_validator(mode="after")
    def _check_every_item_is_answered(self) -> Self:
        if len(self.items) != len(self.answers):
            raise ValueError(f"`{self.member}` has {len(self.items)} scores and {len(self.answers)} answers")
        return self


class PositionAccuracy(Document):
    """Routing accuracy of the tokens at one place: of the prompt, or of the answer; counted from 0."""

    answer: bool
    position: Count
    tokens: PositiveCount
    accuracy: Share


class RoutingAccuracy(Document):
    """The share of tokens, over all tasks, whose largest weight went to the task's own member.

    ``shares`` has a row for each task: how much of its routing weight each member took, in order, and in
    the last column what no member took. ``modules`` and ``layers`` weigh every task the same. Where decisions
    are made ahead, ``left`` is the number of prompts left to the base, and ``confidence`` has the quartiles
    of the prompts' confidence.
    """

    accuracy: Share
    modules: dict[ModulePath, Share]
    layers: dict[str, Share]
    positions: tuple[PositionAccuracy, ...]
    shares: dict[Name, tuple[Share, ...]]
    left: Count | None = None
    confidence: tuple[Share, Share, Share] | None = None

    @model_serializer(mode="wrap")
    def _leave_out_no_decisions(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # An evaluation by token keeps the bytes it had before decisions were counted.
        value: dict[str, Any] = handler(self)
        return {name: each for name, each in value.items() if each is not None}


class Cost(Document):
    """The cost of a mode: its generation alone, on one machine, including the record of the routing.

    ``peak_memory_bytes`` is the device's peak on a GPU and the process's resident set elsewhere; None where
    the system does not report it.
    """

    seconds: FiniteFloat = Field(ge=0)
    prompt_tokens: PositiveCount
    new_tokens: Count
    new_tokens_per_second: FiniteFloat = Field(ge=0)
    peak_memory_bytes: Count | None


class ModeScore(Document):
    """One mode: the mean of its tasks' scores, each task weighing the same."""

    mode: Mode
    score: Share
    interval: Interval | None
    tasks: tuple[TaskScore, ...] = Field(min_length=1)
    routing: RoutingAccuracy | None
    cost: Cost


class Abstention(Document):
    """Decisions about the members' own prompts and about foreign ones, by the bundle's rule.

    Attributes:
        abstain: the threshold of their confidence below which prompts are left to the base; None for none.
        own: how many of the members' own prompts were asked, in every form.
        own_left: how many of them were left to the base.
        foreign: how many foreign prompts were asked.
        foreign_left: how many of them were left to the base.
        auroc: the chance that an own prompt has a higher confidence than a foreign one, ties counted as half.
        own_confidence: the quartiles of the own prompts' confidence.
        foreign_confidence: the quartiles of the foreign ones'.
    """

    abstain: FiniteFloat | None
    own: PositiveCount
    own_left: Count
    foreign: PositiveCount
    foreign_left: Count
    auroc: Share
    own_confidence: tuple[Share, Share, Share]
    foreign_confidence: tuple[Share, Share, Share]


class Evaluation(Document):
    """An evaluation of one bundle on one base."""

    meteora_evaluation: Literal[1]
    bundle: str
    manifest_sha256: Digest | None
    base: str | None
    members: tuple[Name, ...] = Field(min_length=1)
    scope: Scope
    gate_fitted: bool
    tasks: tuple[EvaluatedTask, ...] = Field(min_length=1)
    modes: tuple[ModeScore, ...] = Field(min_length=1)
    batch_size: PositiveCount
    device: str
    dtype: str
    versions: dict[str, str]
    abstention: Abstention | None = None

    # An evaluation without foreign prompts keeps the bytes it had before there were any.
    _leave_out = leaving_out("abstention")

    @model_validator(mode="after")
    def _check_modes_answer_every_task(self) -> Self:
        expected = [(task.member, len(task.lines)) for task in self.tasks]
        for mode in self.modes:
            found = [(task.member, len(task.items)) for task in mode.tasks]
            if found != expected:
                raise ValueError(f"mode `{mode.mode}` does not answer every item of every task")
        return self

    def score_in(self, mode: ModeScore, form: PromptForm) -> float:
        """Return the mean of the tasks' means over the items that were asked in one form."""
        place, count = self.tasks[0].forms.index(form), len(self.tasks[0].forms)
        means = []
        for task in mode.tasks:
            size = len(task.items) // count
            means.append(sum(task.items[place * size : (place + 1) * size]) / size)
        return sum(means) / len(means)

    def mode(self, name: str) -> ModeScore | None:
        """Return the mode of that name, if it was evaluated."""
        return next((mode for mode in self.modes if mode.mode == name), None)


class SummarisedTask(Document):
    """A member's task, with the digest of its data and without the data."""

    member: Name
    data_sha256: Digest
    items: PositiveCount
    metric: Metric
    form: PromptForm


class SummarisedMode(Document):
    """The scores of a mode, over all tasks and in each; ``routing`` is its routing accuracy."""

    mode: Mode
    score: Share
    interval: Interval | None
    routing: Share | None
    tasks: dict[Name, Share]


class EvaluationSummary(Document):
    """Scores of an evaluation, and what they were measured on, without the answers."""

    base: str | None
    scope: Scope
    gate_fitted: bool
    tasks: tuple[SummarisedTask, ...] = Field(min_length=1)
    modes: tuple[SummarisedMode, ...] = Field(min_length=1)
    device: str
    dtype: str
    versions: dict[str, str]

    @classmethod
    def of(cls, evaluation: Evaluation) -> Self:
        """Return the summary of an evaluation."""
        return cls(
            base=evaluation.base,
            scope=evaluation.scope,
            gate_fitted=evaluation.gate_fitted,
            tasks=tuple(_summarise_task(task) for task in evaluation.tasks),
            modes=tuple(_summarise_mode(mode) for mode in evaluation.modes),
            device=evaluation.device,
            dtype=evaluation.dtype,
            versions=evaluation.versions,
        )

    @model_validator(mode="after")
    def _check_modes_have_every_task(self) -> Self:
        expected = {task.member for task in self.tasks}
        for mode in self.modes:
            if mode.tasks.keys() != expected:
                raise ValueError(f"mode `{mode.mode}` does not have the score of every task")
        return self

    @property
    def items(self) -> int:
        """How many items each mode answered."""
        return sum(task.items for task in self.tasks)

    @property
    def of_members(self) -> float | None:
        """The score of the routing as a share of the members' own; None where one was not measured."""
        routed, own = self.mode("routed"), self.mode("member")
        return routed.score / own.score if routed and own and own.score else None

    def mode(self, name: Mode) -> SummarisedMode | None:
        """Return the mode of that name, if it was evaluated."""
        return next((mode for mode in self.modes if mode.mode == name), None)


def _summarise_task(task: EvaluatedTask) -> SummarisedTask:
    return SummarisedTask(
        member=task.member,
        data_sha256=task.data_sha256,
        items=len(task.lines),
        metric=task.metric,
        form=task.form,
    )


def _summarise_mode(mode: ModeScore) -> SummarisedMode:
    return SummarisedMode(
        mode=mode.mode,
        score=mode.score,
        interval=mode.interval,
        routing=None if mode.routing is None else mode.routing.accuracy,
        tasks={task.member: task.score for task in mode.tasks},
    )


class ScoreDifference(Document):
    """The difference of two scores on the same items, the second minus the first; None for a single item."""

    difference: FiniteFloat
    interval: Interval | None

    @property
    def verdict(self) -> Literal["higher", "lower", "not told apart"]:
        """The direction of the difference, if the interval does not contain zero."""
        if self.interval is None or self.interval.low <= 0 <= self.interval.high:
            return "not told apart"
        return "higher" if self.interval.low > 0 else "lower"


class ModeDifference(Document):
    """The second evaluation's mode against the first's: over all tasks, and in each.

    ``against`` is the mode of the first, None where it is the same.
    """

    mode: Mode
    against: Mode | None = None
    first: Share
    second: Share
    overall: ScoreDifference
    tasks: dict[Name, ScoreDifference]

    # A comparison of the same modes keeps the bytes it had before there were others.
    _leave_out = leaving_out("against")


class Comparison(Document):
    """Two evaluations that asked the same, or one with itself, mode by mode."""

    meteora_comparison: Literal[1]
    first: str
    second: str
    modes: tuple[ModeDifference, ...] = Field(min_length=1)
