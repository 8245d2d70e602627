"""``eval``: how well a bundle answers its members' tasks, and how two evaluations compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

import click

from ...schemas.errors import UsageError, way_to_install
from ...schemas.evaluation import (
    DEFAULT_METRIC,
    DEFAULT_MODES,
    MODES,
    Abstention,
    Comparison,
    Evaluation,
    Interval,
    Metric,
    Mode,
    ModeDifference,
    ModeScore,
    ScoreDifference,
)
from ...schemas.gate_choices import PromptForm
from ...scores.intervals import can_estimate
from ...scores.proportions import wilson_interval
from ..dependencies import require_torch
from ..face import Registry
from ..workflows.compare import compare_files
from .groups import examples
from .json_output import print_json
from .output import (
    describe_bytes,
    print_facts,
    print_gate_remark,
    print_line,
    print_remark,
)
from .parameters import (
    as_option,
    base_folder_option,
    base_option,
    bundle_argument,
    count_option,
    data_option,
    format_option,
    pass_registry,
)
from .progress import progress_bar
from .tables import Column, number, print_table

_RUN = "run"
# Each holds the base in memory.
MAX_PROCESSES = 64
_ALL_MODES = "all"
_UNKNOWN = "-"


@click.command(
    _RUN,
    epilog=examples(
        "eval run ./bundle --base ./llama --data tasks/",
        "eval run bundle@2 --base ./llama --data tasks/ --modes all --limit 40 --out all.json --plots pngs/",
        "eval run ./bundle --base ./llama --data tasks/ --metric exact --metric summarise=rouge",
        "eval run ./bundle --base ./llama --data tasks/ --run long.jsonl --processes 2 --tasks sums,dates",
    ),
)
@bundle_argument
@base_option
@base_folder_option
@data_option
@click.option(
    "--modes",
    metavar="MODE,...",
    default=",".join(DEFAULT_MODES),
    show_default=True,
    help=f"Who answers: {_ALL_MODES}, or some of {', '.join(MODES)}.",
)
@click.option("--tasks", metavar="MEMBER,...", help="Whose tasks are asked. Default: those of all members.")
@click.option(
    "--metric",
    "metrics",
    metavar="[MEMBER=]METRIC",
    multiple=True,
    help=f"How answers are judged: {', '.join(get_args(Metric))}. Repeatable. "
    f"Default: as `tasks.toml` in the data has it, else {DEFAULT_METRIC}.",
)
@count_option("--limit", "At most N items of each task, spread over its file.")
@click.option(
    "--stop",
    metavar="TEXT",
    help="An answer ends before this text; \\n in it is a new line. Default: as the model ends it.",
)
@count_option(
    "--max-new-tokens",
    "The longest answer. Default: eight tokens more than the longest expected one of the task.",
)
@count_option("--batch-size", "Items answered at once.", default=8)
@count_option(
    "--processes",
    "Processes that answer, each with the base loaded for itself and one thread.",
    default=1,
    most=MAX_PROCESSES,
)
@click.option(
    "--run",
    "run_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Keeps answers as they come (JSON Lines); given again, it is continued.",
)
@as_option("given", "How prompts are written: as the lines are, plain, in the chat template, or in both.")
@click.option(
    "--out", metavar="FILE", type=click.Path(path_type=Path), help="Also write the evaluation as JSON there."
)
@click.option(
    "--plots", metavar="FOLDER", type=click.Path(path_type=Path), help="Draw the figures as PNG there."
)
@click.option(
    "--foreign",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Has .jsonl files of prompts that no member was made for: count which are left to the base.",
)
@format_option
@pass_registry
def run(
    registry: Registry,
    bundle: str,
    *,
    base: str | None,
    base_folder: Path | None,
    data: Path,
    modes: str,
    tasks: str | None,
    metrics: tuple[str, ...],
    limit: int | None,
    stop: str | None,
    max_new_tokens: int | None,
    batch_size: int,
    processes: int,
    run_file: Path | None,
    form: str,
    out: Path | None,
    plots: Path | None,
    foreign: Path | None,
    as_json: bool,
) -> None:
    """Score a bundle on its members' tasks.

    The modes are the base, each member alone, routed, and plain baselines. Every mode answers the same
    items. A score is the mean of the tasks' means, with the 95 % interval of the bootstrap over items. OF
    MEMBER is the score in percent of that of mode `member`, where each task is answered by its own member;
    ROUTING is how often a token went to the member of its task.
    """
    require_torch("evaluating")
    from ...runtime.evaluation import EvaluationOptions

    metric, metric_of = parse_metrics(metrics)
    options = EvaluationOptions(
        modes=parse_modes(modes),
        tasks=None if tasks is None else [task.strip() for task in tasks.split(",")],
        metric=metric,
        metrics=metric_of,
        limit=limit,
        stop=None if stop is None else stop.replace("\\n", "\n"),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        form=cast("PromptForm", form),
    )
    with progress_bar() as progress:
        found = registry.evaluate(
            bundle,
            base=base,
            base_folder=base_folder,
            data=data,
            options=options,
            run=run_file,
            processes=processes,
            out=out,
            plots=plots,
            foreign=foreign,
            progress=progress,
        )
    if as_json:
        print_json(found)
    else:
        print_evaluation(found)
    if not found.gate_fitted:
        print_gate_remark()


@click.command(
    "compare",
    epilog=examples("eval compare before.json after.json", "eval compare all.json --modes member,prompt"),
)
@click.argument("first", metavar="FIRST.json", type=click.Path(path_type=Path))
@click.argument("second", metavar="[SECOND.json]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--modes",
    metavar="MODE,MODE",
    help="The mode of the first, and the one of the second. Default: all that both have.",
)
@format_option
def compare(first: Path, second: Path | None, *, modes: str | None, as_json: bool) -> None:
    """Compare two evaluations item by item.

    Prints how much higher the second scores, with a 95 % interval. Both must have asked the same items in
    the same way. If the interval contains zero, these items do not show a difference. With one file, two of
    its modes are compared.
    """
    found = compare_files(first, second, modes=None if modes is None else parse_pair(modes))
    if not can_estimate():
        print_remark(f"note: the intervals need scipy, which is not installed; {way_to_install('eval')}")
    if as_json:
        print_json(found)
    else:
        print_comparison(found)


def parse_modes(text: str) -> tuple[Mode, ...]:
    """Return the modes in a comma-separated list.

    Raises:
        UsageError: a word is not a mode.
    """
    if text == _ALL_MODES:
        return MODES
    known: dict[str, Mode] = {mode: mode for mode in MODES}
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in known:
            listed = ", ".join(f"`{mode}`" for mode in (_ALL_MODES, *MODES))
            raise UsageError(f"`--modes` is `{text}`, expected some of {listed}")
    return tuple(known[word] for word in words)


def parse_pair(text: str) -> tuple[Mode, Mode]:
    """Return the two modes in a comma-separated list.

    Raises:
        UsageError: they are not two, or a word is not a mode.
    """
    found = () if text == _ALL_MODES else parse_modes(text)
    if len(found) != 2:
        raise UsageError(f"`--modes` is `{text}`, expected two modes such as `member,routed`")
    return found[0], found[1]


def parse_metrics(texts: Sequence[str]) -> tuple[Metric | None, dict[str, Metric]]:
    """Return the metric of all members, None if there is none, and the metrics of single members.

    Raises:
        UsageError: a word is not a metric, or a member has two.
    """
    known: dict[str, Metric] = {metric: metric for metric in get_args(Metric)}
    found: dict[str, Metric] = {}
    for text in texts:
        member, _, metric = text.rpartition("=")
        if metric not in known:
            listed = ", ".join(f"`{name}`" for name in known)
            # The whole text: part of one could be a secret that nothing marks as such.
            raise UsageError(f"`--metric` is `{text}`, expected one of {listed}, or MEMBER= and one of them")
        if member in found:
            raise UsageError(f"`--metric` is stated twice for {f'`{member}`' if member else 'all members'}")
        found[member] = known[metric]
    return found.pop("", None), found


def print_evaluation(evaluation: Evaluation) -> None:
    """Print every mode's score, routing accuracy and cost, then every task's scores."""
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
        (
            "MODE",
            number("SCORE"),
            number("95 % INTERVAL", 1),
            number("OF MEMBER"),
            number("ROUTING"),
            number("TOKENS/S", 2),
            number("PEAK MEMORY", 3),
        ),
        [_mode_row(mode, evaluation.mode("member")) for mode in evaluation.modes],
    )
    decided = [row for mode in evaluation.modes if (row := _decision_row(mode)) is not None]
    if decided:
        print_line()
        print_table(("MODE", number("LEFT TO THE BASE"), "CONFIDENCE (QUARTILES)"), decided)
    if len(forms := evaluation.tasks[0].forms) > 1:
        print_line()
        print_table(
            ("MODE", *(number(f"{form.upper()} PROMPTS") for form in forms)),
            [
                (mode.mode, *(_percent(evaluation.score_in(mode, form)) for form in forms))
                for mode in evaluation.modes
            ],
        )
    print_line()
    scores = zip(*(mode.tasks for mode in evaluation.modes), strict=True)
    print_table(
        (
            "TASK",
            Column("METRIC", gives_way=1),
            number("ITEMS", 2),
            *(number(mode.mode.upper()) for mode in evaluation.modes),
        ),
        [
            (task.member, task.metric, str(len(task.lines)), *(_percent(each.score) for each in row))
            for task, row in zip(evaluation.tasks, scores, strict=True)
        ],
    )
    if evaluation.abstention is not None:
        _print_abstention(evaluation.abstention)


def _print_abstention(found: Abstention) -> None:
    threshold = "no threshold" if found.abstain is None else f"below the confidence {found.abstain:g}"
    print_line()
    print_line(f"left to the base, {threshold}; AUROC of own against foreign prompts {found.auroc:.3f}")
    print_table(
        (
            "PROMPTS",
            number("COUNT"),
            number("LEFT"),
            number("SHARE"),
            number("95 % INTERVAL"),
            Column("CONFIDENCE (QUARTILES)", gives_way=1),
        ),
        [
            _abstention_row("own", found.own, found.own_left, found.own_confidence),
            _abstention_row("foreign", found.foreign, found.foreign_left, found.foreign_confidence),
        ],
    )


def _decision_row(mode: ModeScore) -> tuple[str, ...] | None:
    """Return how sure a mode's decisions were; None where it makes none."""
    if mode.routing is None or mode.routing.left is None or mode.routing.confidence is None:
        return None
    return mode.mode, f"{mode.routing.left} prompts", _quartiles(mode.routing.confidence)


def _quartiles(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _abstention_row(name: str, count: int, left: int, quartiles: Sequence[float]) -> tuple[str, ...]:
    low, high = wilson_interval(left, count)
    return (
        name,
        str(count),
        str(left),
        _percent(left / count),
        f"{_percent(low)} to {_percent(high)}",
        _quartiles(quartiles),
    )


def print_comparison(comparison: Comparison) -> None:
    """Print every mode's difference over all tasks, then in each task."""
    print_facts([("first", comparison.first), ("second", comparison.second)])
    print_line()
    print_table(
        (
            "MODE",
            number("FIRST"),
            number("SECOND"),
            number("DIFFERENCE"),
            number("95 % INTERVAL", 1),
            "SECOND IS",
        ),
        [
            (_name_modes(mode), _percent(mode.first), _percent(mode.second), *_difference_cells(mode.overall))
            for mode in comparison.modes
        ],
    )
    print_line()
    print_table(
        ("MODE", "TASK", number("DIFFERENCE"), number("95 % INTERVAL", 1), "SECOND IS"),
        [
            (_name_modes(mode), member, *_difference_cells(difference))
            for mode in comparison.modes
            for member, difference in mode.tasks.items()
        ],
    )


def _name_modes(found: ModeDifference) -> str:
    return found.mode if found.against is None else f"{found.mode} against {found.against}"


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
