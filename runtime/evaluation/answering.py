"""Answers of a loaded bundle, batch by batch: in one mode after another, each for items of one task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from transformers import PreTrainedModel

from ...files.progress import Progress, silent
from ...schemas.digest import Digest
from ...schemas.evaluation import UNROUTED, Abstention, Mode
from ...schemas.evaluation_run import RoutingCounts
from ...scores.metrics import BY_LIKELIHOOD
from ..active_bundles import routing
from ..fitting import TaskData
from ..fitting.statistics_file import digest_of_base
from ..loaded_bundle import LoadedBundle
from ..routing_record import RoutingRecord
from .abstention import check_decides, judge_abstention
from .generation import Meter, generate_answers
from .likelihood import likeliest, log_probabilities, read_prompt
from .modes import serve_as, serve_task
from .tally import ReadTokens, count_routing, sum_counts
from .tasks import EvaluationOptions, Task


@dataclass(frozen=True, slots=True)
class Batch:
    """Some items of one task, to be answered together in one mode.

    Attributes:
        mode: who answers.
        task: its place among the tasks.
        number: of the batch in the task, from 0.
        items: places among those of the task.
    """

    mode: Mode
    task: int
    number: int
    items: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """The answers to a batch, in the order of its items, and what they took; see ``AnsweredBatch``."""

    texts: tuple[str, ...]
    seconds: float
    new_tokens: int
    peak_memory_bytes: int | None
    routing: RoutingCounts | None


@dataclass(frozen=True, slots=True)
class Machine:
    """A model's machine: the digest of the base, the device by name, and the element type."""

    base_sha256: Digest
    device: str
    dtype: str


class Answerer(Protocol):
    """One model, or several in processes of their own."""

    @property
    def machine(self) -> Machine:
        """What answers."""
        ...

    def answer(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Answered]]:
        """Yield the answers to each batch, in any order."""
        ...

    def check_decides(self) -> None:
        """Check that the bundle can leave a prompt to the base.

        Raises:
            UsageError: it decides token by token.
        """
        ...

    def judge_abstention(
        self, foreign: Mapping[str, TaskData], options: EvaluationOptions, *, progress: Progress = silent
    ) -> Abstention:
        """Count what the bundle's decisions leave to the base, of the tasks' prompts and of foreign ones."""
        ...


def plan_batches(tasks: Sequence[Task], modes: Sequence[Mode], batch_size: int) -> list[Batch]:
    """Return the batches of every task in every mode; prompts of like lengths together, to pad little."""
    return [
        Batch(mode, place, start // batch_size, tuple(order[start : start + batch_size]))
        for mode in modes
        for place, task in enumerate(tasks)
        for order in [sorted(range(len(task.prompts)), key=lambda item: task.prompt_tokens[item])]
        for start in range(0, len(order), batch_size)
    ]


class ModelAnswerer:
    """A loaded bundle that answers; a mode stays in force until a batch of another is answered."""

    def __init__(self, loaded: LoadedBundle, tasks: Sequence[Task]) -> None:
        self.loaded = loaded
        self._tasks = tuple(tasks)
        self._mode: Mode | None = None
        self._served = ExitStack()

    @property
    def machine(self) -> Machine:
        """What answers."""
        model = self.loaded.model
        return Machine(
            digest_of_base(cast("PreTrainedModel", model.get_base_model())),
            _describe(model.device),
            str(model.dtype).removeprefix("torch."),
        )

    def answer(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Answered]]:
        """Yield the answers to each batch in turn."""
        try:
            for batch in batches:
                yield batch, self.answer_one(batch)
        finally:
            self.end_mode()

    def check_decides(self) -> None:
        """Check that the bundle can leave a prompt to the base.

        Raises:
            UsageError: it decides token by token.
        """
        check_decides(self.loaded)

    def judge_abstention(
        self, foreign: Mapping[str, TaskData], options: EvaluationOptions, *, progress: Progress = silent
    ) -> Abstention:
        """Count what the bundle's decisions leave to the base, of the tasks' prompts and of foreign ones."""
        self.end_mode()
        return judge_abstention(self.loaded, self._tasks, foreign, options, progress=progress)

    def answer_one(self, batch: Batch) -> Answered:
        """Return the answers to a batch."""
        self._serve(batch.mode)
        task = self._tasks[batch.task]
        with serve_task(self.loaded, batch.mode, task.member):
            if task.description.metric in BY_LIKELIHOOD:
                return self._choose(batch, task)
            return self._write(batch, task)

    def end_mode(self) -> None:
        """Let the model be served by its own rule again."""
        self._served.close()
        self._mode = None

    def _serve(self, mode: Mode) -> None:
        if mode != self._mode:
            self.end_mode()
            self._served.enter_context(serve_as(self.loaded, mode))
            self._mode = mode

    def _write(self, batch: Batch, task: Task) -> Answered:
        meter = Meter(self.loaded.model.device)
        counts: RoutingCounts | None = None
        with nullcontext() if batch.mode in UNROUTED else routing(self.loaded.model) as record:
            answers = generate_answers(
                self.loaded,
                [task.prompts[item] for item in batch.items],
                max_new_tokens=task.description.max_new_tokens,
                stop=task.description.stop,
                meter=meter,
            )
        if record is not None:
            counts = self._count(task, record, answers.read)
        return Answered(
            tuple(answers.texts), meter.seconds, answers.new_tokens, meter.peak_memory_bytes, counts
        )

    def _choose(self, batch: Batch, task: Task) -> Answered:
        """Return the likeliest choices; the routing is counted of the prompts, which their choices share."""
        meter = Meter(self.loaded.model.device)
        texts, counts = [], []
        for item in batch.items:
            choices = task.expected[item].choices
            with meter.running():
                with nullcontext() if batch.mode in UNROUTED else routing(self.loaded.model) as record:
                    read = read_prompt(self.loaded, task.prompts[item])
                found = log_probabilities(self.loaded, read, choices)
            if record is not None:
                mask = read.mask.bool()
                counts.append(self._count(task, record, ReadTokens(mask, mask[:, :0])))
            texts.append(likeliest(choices, found, task.description.metric))
        return Answered(
            tuple(texts), meter.seconds, 0, meter.peak_memory_bytes, sum_counts(counts) if counts else None
        )

    def _count(self, task: Task, record: RoutingRecord, read: ReadTokens) -> RoutingCounts:
        members = self.loaded.config.names
        return count_routing(members, task.member, record.modules, read, record.decisions)


def _describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
