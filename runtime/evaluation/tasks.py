"""The tasks of an evaluation: the items that every mode answers, and how their answers are judged.

Everything that can be refused of data and options is refused here, from the tokenizer alone, before a
model is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from transformers import PreTrainedTokenizerBase

from ...files.reading import read_start
from ...schemas.digest import Digest
from ...schemas.errors import UsageError
from ...schemas.evaluation import DEFAULT_METRIC, DEFAULT_MODES, MODES, EvaluatedTask, Metric, Mode
from ...schemas.gate_choices import PromptForm, forms_of
from ...schemas.quotation import quote
from ...schemas.task_settings import TASK_SETTINGS_FILE, OneTask, TaskSettings
from ...schemas.toml import MAX_TOML_BYTES
from ...scores.intervals import check_can_estimate
from ...scores.metrics import BY_LIKELIHOOD, Expected, Judge, judge_of, problem_of
from ..fitting import Sample, TaskData, check_form, write_as, write_behind
from ..fitting.chat_template import ChatTemplate
from ..fitting.sequences import choose_samples
from ..fitting.task_data import refusal_of

# A right answer that continues must not be cut off to one that counts as exactly right.
_MORE_THAN_EXPECTED = 8


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """The options of an evaluation.

    Attributes:
        modes: see ``schemas.evaluation.Mode``.
        tasks: the members whose tasks are asked; None for all.
        metric: how answers are judged, except for the members in ``metrics``; by default as ``settings``
            have it, else ``exact``.
        metrics: the metric of single members.
        limit: at most so many items of each task, spread evenly over its file; None for all.
        stop: text before which an answer ends, such as a new line; by default as ``settings`` have it, else
            the model itself ends it.
        max_new_tokens: the longest answer; by default as ``settings`` have it, else eight tokens more than
            the longest one expected.
        batch_size: items that are answered at once.
        form: of the prompts; as ``both``, every item is asked plain and then in the base's chat template.
        settings: of the tasks, as ``tasks.toml`` beside their data has them.
    """

    modes: Sequence[Mode] = DEFAULT_MODES
    tasks: Sequence[str] | None = None
    metric: Metric | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    limit: int | None = None
    stop: str | None = None
    max_new_tokens: int | None = None
    batch_size: int = 8
    form: PromptForm = "given"
    settings: TaskSettings = field(default_factory=TaskSettings)

    def asked(self, members: Sequence[str]) -> tuple[str, ...]:
        """Return which of the members' tasks are asked, in their order.

        Raises:
            UsageError: a task is of no member, or none is named.
        """
        if self.tasks is None:
            return tuple(members)
        if strangers := [task for task in self.tasks if task not in members]:
            raise UsageError(
                f"the task `{strangers[0]}` is asked for, the bundle has the members {_listed(members)}"
            )
        if not self.tasks:
            raise UsageError("there are no tasks to evaluate")
        return tuple(member for member in members if member in self.tasks)

    def of_task(self, member: str) -> OneTask:
        """Return how a member's task is asked and judged: these options come before the settings."""
        general = {"metric": self.metric, "stop": self.stop, "max_new_tokens": self.max_new_tokens}
        stated = {key: value for key, value in general.items() if value is not None}
        if member in self.metrics:
            stated["metric"] = self.metrics[member]
        return self.settings.of(member).model_copy(update=stated)


@dataclass(frozen=True, slots=True)
class Task:
    """The items of one member's task, their lengths in tokens, what is right, and the labels of the task."""

    description: EvaluatedTask
    prompts: tuple[str, ...]
    prompt_tokens: tuple[int, ...]
    expected: tuple[Expected, ...]
    labels: tuple[str, ...]

    @property
    def member(self) -> str:
        """The member whose task it is."""
        return self.description.member

    def prompt_tokens_of(self, items: Sequence[int]) -> int:
        """Return how many tokens the prompts of some items have together."""
        return sum(self.prompt_tokens[item] for item in items)

    def judge(self) -> Judge:
        """Return the judge of the answers.

        Raises:
            MissingDependency: the library of the metric is not installed.
        """
        return judge_of(self.description.metric, self.labels)


def read_task_settings(folder: Path) -> TaskSettings:
    """Return what ``tasks.toml`` in a folder of task data states; without the file, nothing.

    Raises:
        SourceUnreadable: it cannot be read.
        InvalidDocument: it is malformed.
    """
    path = folder / TASK_SETTINGS_FILE
    # A link that leads nowhere, or a folder of that name, is read and refused.
    if not os.path.lexists(path):
        return TaskSettings()
    return TaskSettings.from_toml(read_start(path, MAX_TOML_BYTES), what=path.name)


def make_tasks(
    data: Mapping[str, TaskData],
    members: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    options: EvaluationOptions,
    *,
    context_tokens: int | None,
) -> tuple[Task, ...]:
    """Return the tasks in the members' order.

    Args:
        data: of every member whose task is asked.
        members: of the bundle.
        tokenizer: of the base.
        options: which items, metrics and lengths.
        context_tokens: what the base takes, prompt and answer together; None without a bound.

    Raises:
        UsageError: an option is out of range, names what there is not, or asks for a form of the prompts for
            which the tokenizer has no template.
        DataRefused: with every problem: an item without an answer to compare with, or one that has no
            room for its answer.
        MissingDependency: the library of a metric or of the intervals is not installed.
    """
    _check_options(options, members)
    check_can_estimate()
    problems: list[str] = []
    with ChatTemplate(tokenizer):
        check_form(tokenizer, options.form)
        tasks = [
            _make_task(data[member], tokenizer, options, context_tokens, problems)
            for member in options.asked(members)
        ]
    if problems:
        raise refusal_of(
            "the data cannot be evaluated",
            problems,
            hint="every line has a `response`, or `messages` that end with an answer; see `--max-new-tokens`",
        )
    return tuple(task for task in tasks if task is not None)


def _check_options(options: EvaluationOptions, members: Sequence[str]) -> None:
    if not options.modes:
        raise UsageError("there are no modes to evaluate")
    for mode in options.modes:
        if mode not in MODES:
            raise UsageError(f"the mode is `{mode}`, expected one of {_listed(MODES)}")
    if len(set(options.modes)) < len(options.modes):
        raise UsageError(f"a mode is named twice: {_listed(options.modes)}")
    for metric in (options.metric, *options.metrics.values()):
        if metric is not None and metric not in get_args(Metric):
            raise UsageError(f"the metric is `{metric}`, expected one of {_listed(get_args(Metric))}")
    for member in options.metrics:
        if member not in members:
            raise UsageError(
                f"a metric is stated for `{member}`, the bundle has the members {_listed(members)}"
            )
    if options.stop == "":
        raise UsageError("the text that ends an answer is empty")
    for name in ("limit", "max_new_tokens", "batch_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}, expected at least 1")


def _make_task(
    data: TaskData,
    tokenizer: PreTrainedTokenizerBase,
    options: EvaluationOptions,
    context_tokens: int | None,
    problems: list[str],
) -> Task | None:
    unanswered = [sample for sample in data.samples if sample.response is None]
    if unanswered:
        problems += [
            f"`{data.path.name}:{sample.line}` has no answer to compare with" for sample in unanswered
        ]
        return None
    settings = options.of_task(data.member)
    metric = settings.metric or DEFAULT_METRIC
    samples = _asked_samples(data, tokenizer, options, settings.header)
    expected = tuple(map(_expected_of, samples))
    found = [
        f"`{data.path.name}:{sample.line}` {problem}"
        for sample, each in zip(samples, expected, strict=True)
        if (problem := problem_of(metric, each)) is not None
    ]
    if metric in BY_LIKELIHOOD:
        found += _unreadable_choices(data, samples, expected, tokenizer)
    prompt_tokens = _lengths([sample.prompt for sample in samples], tokenizer, special=True)
    max_new_tokens = _longest_answer(expected, metric, settings.max_new_tokens, tokenizer)
    found += _without_room(data, samples, prompt_tokens, max_new_tokens, context_tokens)
    problems += dict.fromkeys(found)
    task = Task(
        description=EvaluatedTask(
            member=data.member,
            data_sha256=data.sha256,
            samples=len(data.samples),
            lines=tuple(sample.line for sample in samples),
            metric=metric,
            max_new_tokens=max_new_tokens,
            stop=settings.stop,
            form=options.form,
            header_sha256=None if settings.header is None else Digest.of_bytes(settings.header.encode()),
        ),
        prompts=tuple(sample.prompt for sample in samples),
        prompt_tokens=prompt_tokens,
        expected=expected,
        labels=tuple({right: None for sample in data.samples for right in _expected_of(sample).answers}),
    )
    # A library that is missing is reported now.
    task.judge()
    return task


def _asked_samples(
    data: TaskData, tokenizer: PreTrainedTokenizerBase, options: EvaluationOptions, header: str | None
) -> list[Sample]:
    """Return the samples that are asked, in each form one after another, and not in turn as in a fit."""
    chosen = choose_samples(data.samples, options.limit or len(data.samples))
    if header is not None:
        chosen = write_behind(header, chosen, tokenizer)
    return [sample for form in forms_of(options.form) for sample in write_as(chosen, form, tokenizer)]


def _longest_answer(
    expected: Sequence[Expected], metric: Metric, stated: int | None, tokenizer: PreTrainedTokenizerBase
) -> int:
    """Return how many tokens an answer may have, or by likelihood how many the longest choice has."""
    if metric in BY_LIKELIHOOD:
        texts = [text for each in expected for text in (*each.choices, *each.answers)]
        return max(_lengths(texts, tokenizer, special=False))
    if stated is not None:
        return stated
    texts = [text for each in expected for text in each.answers]
    return max(_lengths(texts, tokenizer, special=False)) + _MORE_THAN_EXPECTED


def _unreadable_choices(
    data: TaskData,
    samples: Sequence[Sample],
    expected: Sequence[Expected],
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[str]:
    """Yield the items with a choice of no tokens, which has no probability."""
    choices = sorted({choice for each in expected for choice in each.choices})
    lengths = dict(zip(choices, _lengths(choices, tokenizer, special=False), strict=True))
    for sample, each in zip(samples, expected, strict=True):
        for choice in each.choices:
            if not lengths[choice]:
                yield (
                    f"`{data.path.name}:{sample.line}` has the choice {quote(choice)}, which the base's "
                    "tokenizer encodes as nothing"
                )


def _without_room(
    data: TaskData,
    samples: Sequence[Sample],
    prompt_tokens: Sequence[int],
    max_new_tokens: int,
    context_tokens: int | None,
) -> Iterator[str]:
    for sample, tokens in zip(samples, prompt_tokens, strict=True):
        if context_tokens is not None and tokens + max_new_tokens > context_tokens:
            yield (
                f"`{data.path.name}:{sample.line}` has a prompt of {tokens} tokens and its answer up to "
                f"{max_new_tokens}, the base takes {context_tokens} together"
            )


def _expected_of(sample: Sample) -> Expected:
    return Expected((sample.response or "", *sample.references), sample.choices)


def _lengths(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, special: bool) -> tuple[int, ...]:
    if not texts:
        # The tokenizers of transformers fail on an empty list.
        return ()
    encoded = tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
    return tuple(map(len, encoded))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
