"""The evaluator: every mode answers every item of every task; answers are judged, routing counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version

import torch

from ...files.progress import Progress, Step, silent
from ...schemas.evaluation import UNROUTED, Evaluation, Mode, ModeScore, TaskScore
from ...scores.intervals import interval_of, mean_of_tasks
from ...scores.metrics import BY_LIKELIHOOD
from ..active_bundles import routing
from ..fitting import TaskData, context_of
from ..loaded_bundle import LoadedBundle
from ..routing_record import RoutingRecord
from .abstention import check_decides, judge_abstention
from .generation import Meter, generate_answers
from .likelihood import likeliest, log_probabilities, read_prompt
from .modes import serve_as, serve_task
from .tally import ReadTokens, RoutingTally
from .tasks import EvaluationOptions, Task, make_tasks

_PACKAGES = ("meteora-registry", "peft", "torch", "transformers")


def evaluate(
    loaded: LoadedBundle,
    data: Mapping[str, TaskData],
    options: EvaluationOptions | None = None,
    *,
    bundle: str,
    foreign: Mapping[str, TaskData] | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Score a bundle on its members' tasks.

    Args:
        loaded: the bundle on its base.
        data: of every member.
        options: modes, metrics, and how many items.
        bundle: its name in the evaluation.
        foreign: prompts that no member was made for, to count what the bundle's decisions leave to the base.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        UsageError: an option is out of range, or the bundle cannot serve in a mode.
        DataRefused: an item has no answer to compare with, or no room for one.
        MissingDependency: a library of a metric or of the intervals is not installed.
    """
    options = options or EvaluationOptions()
    config, model = loaded.config, loaded.model
    context = context_of(model.config)
    tasks = make_tasks(data, config.names, loaded.tokenizer, options, context_tokens=context)
    if foreign is not None:
        check_decides(loaded)
    evaluator = _Evaluator(loaded, tasks, options.batch_size, progress)
    return Evaluation(
        meteora_evaluation=1,
        bundle=bundle,
        manifest_sha256=None,
        base=config.base_model_name_or_path,
        members=config.names,
        scope=config.gate.scope,
        gate_fitted=config.gate.is_fitted,
        tasks=tuple(task.description for task in tasks),
        modes=tuple(evaluator.score(mode) for mode in options.modes),
        batch_size=options.batch_size,
        device=_describe(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        versions={name: version(name) for name in _PACKAGES},
        abstention=None
        if foreign is None
        else judge_abstention(loaded, tasks, foreign, options, progress=progress),
    )


@dataclass(slots=True)
class _Evaluator:
    loaded: LoadedBundle
    tasks: tuple[Task, ...]
    batch_size: int
    progress: Progress

    def score(self, mode: Mode) -> ModeScore:
        """Score one mode on all tasks."""
        step = Step(mode, sum(len(task.prompts) for task in self.tasks), self.progress)
        meter = Meter(self.loaded.model.device)
        tally = None if mode in UNROUTED else RoutingTally(self.loaded.config.names)
        with serve_as(self.loaded, mode):
            tasks = tuple(self._score_task(mode, task, meter, tally, step) for task in self.tasks)
        items = [task.items for task in tasks]
        return ModeScore(
            mode=mode,
            score=mean_of_tasks(items),
            interval=interval_of(items),
            tasks=tasks,
            routing=None if tally is None else tally.result(),
            cost=meter.result(),
        )

    def _score_task(
        self, mode: Mode, task: Task, meter: Meter, tally: RoutingTally | None, step: Step
    ) -> TaskScore:
        answers: dict[int, str] = {}
        # Prompts of like lengths together, so that little is padded.
        order = sorted(range(len(task.prompts)), key=lambda item: task.prompt_tokens[item])
        with serve_task(self.loaded, mode, task.member):
            for start in range(0, len(order), self.batch_size):
                items = order[start : start + self.batch_size]
                answers |= zip(items, self._answer(task, items, meter, tally), strict=True)
                step.advance(len(items))
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
        if task.description.metric in BY_LIKELIHOOD:
            return [self._choose(task, item, meter, tally) for item in items]
        prompts = [task.prompts[item] for item in items]
        with nullcontext() if tally is None else routing(self.loaded.model) as record:
            answers = generate_answers(
                self.loaded,
                prompts,
                max_new_tokens=task.description.max_new_tokens,
                stop=task.description.stop,
                meter=meter,
            )
            if tally is not None and isinstance(record, RoutingRecord):
                tally.add(task.member, record.modules, answers.read, record.decisions)
        prompt_tokens = sum(task.prompt_tokens[item] for item in items)
        meter.count(prompt_tokens=prompt_tokens, new_tokens=answers.new_tokens)
        return answers.texts

    def _choose(self, task: Task, item: int, meter: Meter, tally: RoutingTally | None) -> str:
        """Return the likeliest choice; the routing is counted of the prompt, which all choices share."""
        with meter.running():
            with nullcontext() if tally is None else routing(self.loaded.model) as record:
                read = read_prompt(self.loaded, task.prompts[item])
            if tally is not None and isinstance(record, RoutingRecord):
                mask = read.mask.bool()
                tally.add(task.member, record.modules, ReadTokens(mask, mask[:, :0]), record.decisions)
            choices = task.expected[item].choices
            found = log_probabilities(self.loaded, read, choices)
        meter.count(prompt_tokens=task.prompt_tokens[item], new_tokens=0)
        return likeliest(choices, found, task.description.metric)


def _describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
