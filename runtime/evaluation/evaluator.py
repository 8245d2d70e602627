"""The evaluator: every mode answers every item of every task; answers are judged, routing counted.

The work is divided into batches. What is reported is put together from all batches in
their planned order, so it is the same whether they were answered in one go or in several, by one process or
by several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from ...files.progress import Progress, Step, silent
from ...schemas.bundle import BundleConfig
from ...schemas.digest import Digest
from ...schemas.evaluation import UNROUTED, Cost, Evaluation, Mode, ModeScore, TaskScore
from ...schemas.evaluation_run import AnsweredBatch, RunSettings
from ...scores.intervals import interval_of, mean_of_tasks
from ...scores.metrics import Judge
from ..fitting import TaskData, context_of
from ..loaded_bundle import LoadedBundle
from .answering import Answered, Answerer, Batch, ModelAnswerer, plan_batches
from .run_file import RunFile
from .tally import RoutingTally
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
    config = loaded.config
    context = context_of(loaded.model.config)
    tasks = make_tasks(data, config.names, loaded.tokenizer, options, context_tokens=context)
    answerer = ModelAnswerer(loaded, tasks)
    return evaluate_tasks(answerer, config, tasks, options, bundle=bundle, foreign=foreign, progress=progress)


def evaluate_tasks(
    answerer: Answerer,
    config: BundleConfig,
    tasks: Sequence[Task],
    options: EvaluationOptions,
    *,
    bundle: str,
    manifest_sha256: Digest | None = None,
    run: RunFile | None = None,
    foreign: Mapping[str, TaskData] | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Score a bundle on tasks that were made for it.

    Args:
        answerer: who answers.
        config: of the bundle.
        tasks: what is asked.
        options: modes and batch size.
        bundle: its name in the evaluation.
        manifest_sha256: of the bundle.
        run: keeps each batch of answers, and has those that need not be asked again.
        foreign: as for ``evaluate``.
        progress: called with a mode, how many of its items are answered, and how many there are.

    Raises:
        UsageError: the bundle cannot serve in a mode, or the run is another one or was damaged.
        SourceUnreadable: the run cannot be written.
    """
    if foreign is not None:
        answerer.check_decides()
    machine = answerer.machine
    settings = RunSettings(
        meteora_run=1,
        base_sha256=machine.base_sha256,
        device=machine.device,
        dtype=machine.dtype,
        **known_settings(manifest_sha256, options),
    )
    if run is not None:
        run.begin([task.description for task in tasks], settings)
    batches = _answer_all(answerer, config.names, tasks, options, run, progress)
    return Evaluation(
        meteora_evaluation=1,
        bundle=bundle,
        manifest_sha256=manifest_sha256,
        base=config.base_model_name_or_path,
        members=config.names,
        scope=config.gate.scope,
        gate_fitted=config.gate.is_fitted,
        tasks=tuple(task.description for task in tasks),
        modes=tuple(_score_mode(mode, tasks, batches[mode], config.names) for mode in options.modes),
        batch_size=options.batch_size,
        device=machine.device,
        dtype=machine.dtype,
        versions=settings.versions,
        abstention=None
        if foreign is None
        else answerer.judge_abstention(foreign, options, progress=progress),
    )


def known_settings(manifest_sha256: Digest | None, options: EvaluationOptions) -> dict[str, Any]:
    """Return the settings of a run that are known before a base is loaded."""
    return {
        "manifest_sha256": manifest_sha256,
        "batch_size": options.batch_size,
        "versions": {name: version(name) for name in _PACKAGES},
    }


def _answer_all(
    answerer: Answerer,
    members: Sequence[str],
    tasks: Sequence[Task],
    options: EvaluationOptions,
    run: RunFile | None,
    progress: Progress,
) -> dict[Mode, list[AnsweredBatch]]:
    """Return the answers of every mode in their planned order; what the run has is not asked again."""
    plan = plan_batches(tasks, options.modes, options.batch_size)
    total = sum(len(task.prompts) for task in tasks)
    steps = {mode: Step(mode, total, progress) for mode in options.modes}
    found: dict[Batch, AnsweredBatch] = {}
    for batch in plan:
        kept = None if run is None else run.find(batch, tasks[batch.task], members)
        if kept is not None:
            found[batch] = kept
            steps[batch.mode].advance(len(batch.items))
    judges = [task.judge() for task in tasks]
    for batch, answered in answerer.answer([batch for batch in plan if batch not in found]):
        found[batch] = _judged(batch, tasks[batch.task], answered, judges[batch.task])
        if run is not None:
            run.keep(found[batch])
        steps[batch.mode].advance(len(batch.items))
    return {mode: [found[batch] for batch in plan if batch.mode == mode] for mode in options.modes}


def _judged(batch: Batch, task: Task, answered: Answered, judge: Judge) -> AnsweredBatch:
    expected = [task.expected[item] for item in batch.items]
    return AnsweredBatch(
        mode=batch.mode,
        member=task.member,
        number=batch.number,
        items=batch.items,
        answers=answered.texts,
        scores=tuple(map(judge, answered.texts, expected)),
        seconds=answered.seconds,
        prompt_tokens=task.prompt_tokens_of(batch.items),
        new_tokens=answered.new_tokens,
        peak_memory_bytes=answered.peak_memory_bytes,
        routing=answered.routing,
    )


def _score_mode(
    mode: Mode, tasks: Sequence[Task], batches: Sequence[AnsweredBatch], members: Sequence[str]
) -> ModeScore:
    scored = tuple(
        _score_task(task, [batch for batch in batches if batch.member == task.member]) for task in tasks
    )
    items = [task.items for task in scored]
    tally = RoutingTally(members)
    for batch in batches:
        if batch.routing is not None:
            tally.add(batch.member, batch.routing)
    return ModeScore(
        mode=mode,
        score=mean_of_tasks(items),
        interval=interval_of(items),
        tasks=scored,
        routing=None if mode in UNROUTED else tally.result(),
        cost=_sum_costs(batches),
    )


def _score_task(task: Task, batches: Sequence[AnsweredBatch]) -> TaskScore:
    by_item = {
        item: (score, answer)
        for batch in batches
        for item, score, answer in zip(batch.items, batch.scores, batch.answers, strict=True)
    }
    scores, answers = zip(*(by_item[item] for item in range(len(task.prompts))), strict=True)
    return TaskScore(
        member=task.member,
        score=mean_of_tasks([scores]),
        interval=interval_of([scores]),
        items=scores,
        answers=answers,
    )


def _sum_costs(batches: Sequence[AnsweredBatch]) -> Cost:
    # To microseconds, as each was measured: by less time the speed could be infinite.
    seconds = round(sum(batch.seconds for batch in batches), 6)
    new_tokens = sum(batch.new_tokens for batch in batches)
    peaks = [batch.peak_memory_bytes for batch in batches if batch.peak_memory_bytes is not None]
    return Cost(
        seconds=round(seconds, 3),
        prompt_tokens=sum(batch.prompt_tokens for batch in batches),
        new_tokens=new_tokens,
        new_tokens_per_second=round(new_tokens / seconds, 3) if seconds else 0.0,
        peak_memory_bytes=max(peaks, default=None),
    )
