"""Every mode answers every item of every task, greedily; the answers are judged and the routing counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version

import torch
from torch import Tensor

from ...schemas.bundle import NOT_FITTED
from ...schemas.evaluation import UNROUTED, Evaluation, Mode, ModeScore, TaskScore
from ..fitting import TaskData, context_of
from ..loading import LoadedBundle
from ..record import RoutingRecord
from ..recording import routing
from .intervals import interval_of, mean_of_tasks
from .meter import Meter
from .modes import serve_as
from .tally import ReadTokens, RoutingTally
from .tasks import EvaluationOptions, Task, make_tasks

# Told a mode, and how many of its items are answered.
Progress = Callable[[str, int, int], None]
_PACKAGES = ("meteora-registry", "peft", "torch", "transformers")


def evaluate(
    loaded: LoadedBundle,
    data: Mapping[str, TaskData],
    options: EvaluationOptions | None = None,
    *,
    bundle: str,
    progress: Progress | None = None,
) -> Evaluation:
    """Score a bundle on its members' tasks.

    Args:
        loaded: the bundle on its base.
        data: of every member.
        options: modes, metrics, and how much is asked.
        bundle: what the evaluation calls it.
        progress: told how far it got.

    Raises:
        UsageError: an option is out of range, or the bundle cannot serve in a mode.
        DataRefused: an item has no answer to compare with, or no room for one.
        MissingDependency: a library of a metric or of the intervals is not installed.
    """
    options = options or EvaluationOptions()
    config, model = loaded.config, loaded.model
    context = context_of(model.config)
    tasks = make_tasks(data, config.names, loaded.tokenizer, options, context_tokens=context)
    evaluator = _Evaluator(loaded, tasks, options.batch_size, progress)
    return Evaluation(
        meteora_evaluation=1,
        bundle=bundle,
        manifest_sha256=None,
        base=config.base_model_name_or_path,
        members=config.names,
        scope=config.gate.scope,
        gate_fitted=config.gate.fitted != NOT_FITTED,
        tasks=tuple(task.description for task in tasks),
        modes=tuple(evaluator.score(mode) for mode in options.modes),
        batch_size=options.batch_size,
        device=_describe(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        versions={name: version(name) for name in _PACKAGES},
    )


@dataclass(frozen=True, slots=True)
class _Batch:
    """The answers to some items, and which of the tokens were read on the way."""

    answers: list[str]
    tokens: ReadTokens
    new_tokens: int


@dataclass(slots=True)
class _Evaluator:
    loaded: LoadedBundle
    tasks: tuple[Task, ...]
    batch_size: int
    progress: Progress | None
    _done: int = field(default=0)

    def score(self, mode: Mode) -> ModeScore:
        """One mode on all tasks."""
        self._done = 0
        meter = Meter(self.loaded.model.device)
        tally = None if mode in UNROUTED else RoutingTally(self.loaded.config.names)
        tasks = tuple(self._score_task(mode, task, meter, tally) for task in self.tasks)
        items = [task.items for task in tasks]
        return ModeScore(
            mode=mode,
            score=mean_of_tasks(items),
            interval=interval_of(items),
            tasks=tasks,
            routing=None if tally is None else tally.result(),
            cost=meter.result(),
        )

    def _score_task(self, mode: Mode, task: Task, meter: Meter, tally: RoutingTally | None) -> TaskScore:
        answers: dict[int, str] = {}
        # Prompts of like lengths together, so that little is padded.
        order = sorted(range(len(task.prompts)), key=lambda item: task.prompt_tokens[item])
        with serve_as(self.loaded, mode, task.member):
            for start in range(0, len(order), self.batch_size):
                items = order[start : start + self.batch_size]
                answers |= zip(items, self._answer(task, items, meter, tally), strict=True)
                self._advance(mode, len(items))
        given = tuple(answers[item] for item in range(len(task.prompts)))
        scores = tuple(map(task.judge, given, task.expected))
        return TaskScore(
            member=task.member,
            score=mean_of_tasks([scores]),
            interval=interval_of([scores]),
            items=scores,
            answers=given,
        )

    def _answer(
        self, task: Task, items: Sequence[int], meter: Meter, tally: RoutingTally | None
    ) -> list[str]:
        prompts = [task.prompts[item] for item in items]
        with nullcontext() if tally is None else routing(self.loaded.model) as record:
            batch = self._generate(prompts, task.description.max_new_tokens, meter)
            if tally is not None and isinstance(record, RoutingRecord):
                tally.add(task.member, record.modules, batch.tokens)
        meter.count(
            prompt_tokens=sum(task.prompt_tokens[item] for item in items), new_tokens=batch.new_tokens
        )
        return batch.answers

    def _generate(self, prompts: list[str], max_new_tokens: int, meter: Meter) -> _Batch:
        tokenizer, model = self.loaded.tokenizer, self.loaded.model
        batch = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
        with torch.no_grad(), meter.running():
            # PEFT leaves it untyped.
            ids = model.generate(  # type: ignore[no-untyped-call]
                **batch, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id
            )
        written = ids[:, batch["input_ids"].shape[1] :]
        is_answer = _before_end(written, _ends_of(self.loaded))
        # The last token of the longest answer was written and never read.
        read = ReadTokens(batch["attention_mask"].bool(), is_answer[:, :-1])
        ended = (~is_answer).any(dim=1)
        return _Batch(
            answers=list(tokenizer.batch_decode(written, skip_special_tokens=True)),
            tokens=read,
            new_tokens=int(is_answer.sum() + ended.sum()),
        )

    def _advance(self, mode: str, items: int) -> None:
        self._done += items
        if self.progress is not None:
            self.progress(mode, self._done, sum(len(task.prompts) for task in self.tasks))


def _before_end(written: Tensor, ends: Tensor) -> Tensor:
    """The tokens of each answer before the one that ends it, bool ``[B, N]``."""
    is_end = torch.isin(written, ends.to(written.device))
    return is_end.long().cumsum(dim=1) == 0


def _ends_of(loaded: LoadedBundle) -> Tensor:
    found = loaded.model.generation_config.eos_token_id
    ends = found if isinstance(found, list) else [] if found is None else [found]
    return torch.tensor(ends, dtype=torch.int64)


def _describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
