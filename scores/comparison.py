"""Two evaluations against each other, or two modes of one, item by item.

Both asked the same items, so the bootstrap runs over the difference of each item's two scores, and has a
far narrower interval than two intervals side by side, which also contain how hard the items are.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..schemas.digest import Digest
from ..schemas.errors import UsageError
from ..schemas.evaluation import (
    Comparison,
    EvaluatedTask,
    Evaluation,
    Mode,
    ModeDifference,
    ModeScore,
    ScoreDifference,
)
from .intervals import interval_of, mean_of_tasks


def compare(
    first: Evaluation,
    second: Evaluation,
    *,
    modes: tuple[Mode, Mode] | None = None,
    with_intervals: bool = True,
) -> Comparison:
    """Return how much higher the second scores than the first, in every mode that both have.

    Args:
        first: the evaluation that the differences count from.
        second: the other one; the same one to compare two of its modes.
        modes: the mode of the first and that of the second to compare in place of all in common.
        with_intervals: whether the differences get intervals, which need scipy.

    Raises:
        MissingDependency: intervals were asked for and scipy is not installed.
        UsageError: other data, items, metrics or lengths of answer, no mode in common, or none of that name.
    """
    _check_same_questions(first.tasks, second.tasks)
    if modes is not None:
        ours, theirs = _mode_of(first, modes[0], "first"), _mode_of(second, modes[1], "second")
        found = _difference(ours, theirs, with_intervals=with_intervals)
        return Comparison(meteora_comparison=1, first=first.bundle, second=second.bundle, modes=(found,))
    pairs = [(mode, second.mode(mode.mode)) for mode in first.modes]
    common = [
        _difference(mode, other, with_intervals=with_intervals) for mode, other in pairs if other is not None
    ]
    if not common:
        raise UsageError(
            f"no mode is in both evaluations: the first has {_listed(first)}, the second {_listed(second)}"
        )
    return Comparison(meteora_comparison=1, first=first.bundle, second=second.bundle, modes=tuple(common))


def _check_same_questions(first: Sequence[EvaluatedTask], second: Sequence[EvaluatedTask]) -> None:
    tasks, others = ({task.member: task for task in each} for each in (first, second))
    for member in [*tasks, *(other for other in others if other not in tasks)]:
        if member not in tasks or member not in others:
            side = "first" if member in tasks else "second"
            raise UsageError(f"only the {side} evaluation has the task `{member}`", hint=_SAME_DATA)
        _check_same_task(tasks[member], others[member])


_SAME_DATA = (
    "evaluate both on the same folder, with the same `tasks.toml`, `--limit`, `--metric`, `--stop` and "
    "`--max-new-tokens`"
)


def _check_same_task(task: EvaluatedTask, other: EvaluatedTask) -> None:
    if difference := difference_of_tasks(task, other):
        raise UsageError(
            f"the evaluations did not ask the same: the task `{task.member}` has {difference}",
            hint=_SAME_DATA,
        )


def difference_of_tasks(task: EvaluatedTask, other: EvaluatedTask) -> str | None:
    """Return what two evaluations asked otherwise in one task, to follow its name; None if nothing."""
    for what, ours, theirs in (
        ("data of sha256", task.data_sha256.short, other.data_sha256.short),
        ("the metric", task.metric, other.metric),
        ("answers that end before", repr(task.stop), repr(other.stop)),
        ("prompts read as", task.form, other.form),
        ("a header of sha256", _short(task.header_sha256), _short(other.header_sha256)),
        ("answers of at most this many tokens:", str(task.max_new_tokens), str(other.max_new_tokens)),
    ):
        if ours != theirs:
            return f"{what} `{ours}` in the first and `{theirs}` in the second"
    if task.lines != other.lines:
        return (
            f"{len(task.lines)} items in the first and {len(other.lines)} in the second, or other lines of "
            "the same file"
        )
    return None


def _mode_of(evaluation: Evaluation, name: Mode, side: str) -> ModeScore:
    found = evaluation.mode(name)
    if found is None:
        raise UsageError(f"the {side} evaluation has no mode `{name}`, it has {_listed(evaluation)}")
    return found


def _short(digest: Digest | None) -> str:
    return "none" if digest is None else digest.short


def _difference(first: ModeScore, second: ModeScore, *, with_intervals: bool) -> ModeDifference:
    items = {task.member: task.items for task in second.tasks}
    differences = {
        task.member: [b - a for a, b in zip(task.items, items[task.member], strict=True)]
        for task in first.tasks
    }
    return ModeDifference(
        mode=second.mode,
        against=None if first.mode == second.mode else first.mode,
        first=first.score,
        second=second.score,
        overall=_judge(list(differences.values()), with_interval=with_intervals),
        tasks={member: _judge([each], with_interval=with_intervals) for member, each in differences.items()},
    )


def _judge(tasks: Sequence[Sequence[float]], *, with_interval: bool) -> ScoreDifference:
    interval = interval_of(tasks) if with_interval else None
    return ScoreDifference(difference=mean_of_tasks(tasks), interval=interval)


def _listed(evaluation: Evaluation) -> str:
    return ", ".join(f"`{mode.mode}`" for mode in evaluation.modes)
