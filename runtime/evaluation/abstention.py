"""The prompts that a bundle's decisions leave to the base: the members' own, and foreign ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ...files.progress import Progress, Step, silent
from ...schemas.errors import UsageError
from ...schemas.evaluation import Abstention
from ...schemas.gate_choices import forms_of
from ...scores.proportions import area_under_curve
from ..active_bundles import only_router, routing
from ..fitting import TaskData, read_task_data, strangers_in, write_as
from ..fitting.task_data import SUFFIX
from ..loaded_bundle import LoadedBundle
from ..scopes.decision import Decision
from .confidence import judge_prompts, quartiles_of
from .tasks import EvaluationOptions, Task


def read_foreign(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    context_tokens: int | None,
    *,
    members: Sequence[str] = (),
) -> dict[str, TaskData]:
    """Read a folder of foreign prompts: each of its ``.jsonl`` files that is not of a member, as task data.

    Raises:
        SourceUnreadable: the folder cannot be read.
        DataRefused: as ``read_task_data``.
        UsageError: it has no such file.
    """
    files = strangers_in(folder, members) if folder.is_dir() else ()
    names = [name.removesuffix(SUFFIX) for name in files]
    found = read_task_data(folder, names, tokenizer=tokenizer, context_tokens=context_tokens)
    if not found:
        raise UsageError(
            f"`{folder}` has no file that ends in `.jsonl`, expected foreign prompts",
            hint='a line is {"prompt": ..., "response": ...}, {"messages": [...]} or {"text": ...}',
        )
    return found


def check_decides(loaded: LoadedBundle) -> None:
    """Check that the bundle decides for whole requests, so that it can leave one to the base.

    Raises:
        UsageError: it decides token by token.
    """
    rule = only_router(loaded.model).rule
    if not rule.decides_ahead:
        raise UsageError(
            f"the bundle's scope `{rule.scope}` decides token by token, so no prompt is left to the base",
            hint="fit the gates with `--scope prompt`, or leave out `--foreign`",
        )


def judge_abstention(
    loaded: LoadedBundle,
    tasks: Sequence[Task],
    foreign: Mapping[str, TaskData],
    options: EvaluationOptions,
    *,
    progress: Progress = silent,
) -> Abstention:
    """Decide about the tasks' prompts and about foreign ones by the bundle's own rule, and count.

    The bundle must pass ``check_decides``.
    """
    own_prompts = [prompt for task in tasks for prompt in task.prompts]
    foreign_prompts = [
        sample.prompt
        for data in foreign.values()
        for form in forms_of(options.form)
        for sample in write_as(data.samples, form, loaded.tokenizer)
    ]
    step = Step("deciding", len(own_prompts) + len(foreign_prompts), progress)
    own, own_left = _decide(loaded, own_prompts, options.batch_size, step)
    strange, strange_left = _decide(loaded, foreign_prompts, options.batch_size, step)
    return Abstention(
        abstain=only_router(loaded.model).rule.abstain,
        own=len(own),
        own_left=own_left,
        foreign=len(strange),
        foreign_left=strange_left,
        auroc=area_under_curve(own, strange),
        own_confidence=quartiles_of(own),
        foreign_confidence=quartiles_of(strange),
    )


def _decide(
    loaded: LoadedBundle, prompts: Sequence[str], batch_size: int, step: Step
) -> tuple[list[float], int]:
    """Return the confidence of each prompt, in order of length, and how many are left to the base."""
    ordered = sorted(prompts, key=len)
    confidences, left = [], 0
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        for confidence, is_left in judge_prompts(_decisions_of(loaded, batch)):
            confidences.append(confidence)
            left += is_left
        step.advance(len(batch))
    return confidences, left


def _decisions_of(loaded: LoadedBundle, prompts: Sequence[str]) -> Sequence[Decision]:
    batch = loaded.encode(list(prompts), padding=True)
    with torch.no_grad(), routing(loaded.model) as record:
        loaded.model(**batch)
    return record.decisions
