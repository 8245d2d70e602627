"""An evaluation, and a comparison of two, as tables."""

from __future__ import annotations

from ...schemas.evaluation import Comparison, Evaluation, Interval, ModeScore, ScoreDifference
from .output import describe_bytes, print_facts, print_line, print_table

_UNKNOWN = "-"


def print_evaluation(evaluation: Evaluation) -> None:
    """Every mode's score, routing accuracy and cost, then every task's scores."""
    print_facts(
        [
            ("bundle", evaluation.bundle),
            ("base", evaluation.base),
            ("scope", evaluation.scope),
            ("items", str(sum(len(task.lines) for task in evaluation.tasks))),
            ("device", f"{evaluation.device}, {evaluation.dtype}"),
        ]
    )
    print_line()
    print_table(
        ("MODE", "SCORE", "95 % INTERVAL", "OF MEMBER", "ROUTING", "TOKENS/S", "PEAK MEMORY"),
        [_mode_row(mode, evaluation.mode("member")) for mode in evaluation.modes],
    )
    print_line()
    scores = zip(*(mode.tasks for mode in evaluation.modes), strict=True)
    print_table(
        ("TASK", "METRIC", "ITEMS", *(mode.mode.upper() for mode in evaluation.modes)),
        [
            (task.member, task.metric, str(len(task.lines)), *(_percent(each.score) for each in row))
            for task, row in zip(evaluation.tasks, scores, strict=True)
        ],
    )


def print_comparison(comparison: Comparison) -> None:
    """Every mode's difference over all tasks, then in each task."""
    print_facts([("first", comparison.first), ("second", comparison.second)])
    print_line()
    print_table(
        ("MODE", "FIRST", "SECOND", "DIFFERENCE", "95 % INTERVAL", "SECOND IS"),
        [
            (mode.mode, _percent(mode.first), _percent(mode.second), *_difference_cells(mode.overall))
            for mode in comparison.modes
        ],
    )
    print_line()
    print_table(
        ("MODE", "TASK", "DIFFERENCE", "95 % INTERVAL", "SECOND IS"),
        [
            (mode.mode, member, *_difference_cells(difference))
            for mode in comparison.modes
            for member, difference in mode.tasks.items()
        ],
    )


def _mode_row(mode: ModeScore, member: ModeScore | None) -> tuple[str, ...]:
    of_member = _UNKNOWN if member is None or not member.score else f"{mode.score / member.score:.0%}"
    peak = mode.cost.peak_memory_bytes
    return (
        mode.mode,
        _percent(mode.score),
        _interval(mode.interval),
        of_member,
        _UNKNOWN if mode.routing is None else _percent(mode.routing.accuracy),
        f"{mode.cost.new_tokens_per_second:.1f}",
        _UNKNOWN if peak is None else describe_bytes(peak),
    )


def _difference_cells(found: ScoreDifference) -> tuple[str, str, str]:
    interval = _UNKNOWN
    if found.interval is not None:
        interval = f"{100 * found.interval.low:+.1f} to {100 * found.interval.high:+.1f}"
    return f"{100 * found.difference:+.1f}", interval, found.verdict


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return _UNKNOWN
    return f"{_percent(interval.low)} to {_percent(interval.high)}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
