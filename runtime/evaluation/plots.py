"""The figures of an evaluation, as PNG: scores, tasks, and where in model and text the routing is right."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ...schemas.errors import MissingDependency
from ...schemas.evaluation import Evaluation, RoutingAccuracy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DOTS_PER_INCH = 150
_WIDTH = 8.0
# With more cells the annotations are too small to read.
_MAX_ANNOTATED_CELLS = 600


def check_can_draw() -> None:
    """Check that the figures can be drawn.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401 (whether it is there)
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise MissingDependency(
            "figures need `matplotlib`, which is not installed",
            extra="eval",
        ) from error


def draw_plots(evaluation: Evaluation) -> dict[str, bytes]:
    """Draw the figures: PNG files by name, those about routing only if a mode routes.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    check_can_draw()
    figures = {"scores.png": _draw_scores(evaluation), "tasks.png": _draw_tasks(evaluation)}
    routed: dict[str, RoutingAccuracy] = {
        mode.mode: mode.routing for mode in evaluation.modes if mode.routing is not None
    }
    if routed:
        figures["routing-layers.png"] = _draw_layers(routed)
        figures["routing-positions.png"] = _draw_positions(routed)
    for mode, routing in routed.items():
        figures[f"shares-{mode.replace('+', '-')}.png"] = _draw_shares(mode, routing, evaluation.members)
    return {name: _to_png(figure) for name, figure in figures.items()}


def _figure(height: float, width: float = _WIDTH) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _to_png(figure: Figure) -> bytes:
    data = io.BytesIO()
    # Without these the bytes would name the version that drew them.
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def _draw_scores(evaluation: Evaluation) -> Figure:
    modes = evaluation.modes[::-1]
    figure, axes = _figure(1.0 + 0.42 * len(modes))
    axes.barh(
        [mode.mode for mode in modes], [100 * mode.score for mode in modes], color="#6f8fd8", height=0.65
    )
    for place, mode in enumerate(modes):
        end = 100 * mode.score
        if mode.interval is not None:
            low, high = 100 * mode.interval.low, 100 * mode.interval.high
            axes.plot([low, high], [place, place], color="#1b1f24", linewidth=1.5, marker="|")
            end = max(high, end)
        axes.annotate(
            f"{100 * mode.score:.1f}", (end, place), (6, 0), textcoords="offset points", va="center"
        )
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("mean score of the tasks, in %, with 95 % interval")
    return figure


def _draw_tasks(evaluation: Evaluation) -> Figure:
    scores = [[100 * task.score for task in mode.tasks] for mode in evaluation.modes]
    table = [list(row) for row in zip(*scores, strict=True)]
    return _draw_table(
        table,
        rows=[f"{task.member} ({task.metric})" for task in evaluation.tasks],
        columns=[mode.mode for mode in evaluation.modes],
        title="score in %",
    )


def _draw_shares(mode: str, routing: RoutingAccuracy, members: Sequence[str]) -> Figure:
    table = [[100 * share for share in shares] for shares in routing.shares.values()]
    columns = [*members, "no member"]
    if not any(row[-1] for row in table):
        table, columns = [row[:-1] for row in table], columns[:-1]
    title = f"{mode}: member that tokens of a task took, in % of the weight"
    return _draw_table(table, rows=list(routing.shares), columns=columns, title=title)


def _draw_table(
    table: Sequence[Sequence[float]], *, rows: Sequence[str], columns: Sequence[str], title: str
) -> Figure:
    figure, axes = _figure(1.6 + 0.32 * len(rows), max(5.0, 2.8 + 0.55 * len(columns)))
    axes.imshow(table, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize="medium", loc="left")
    if len(rows) * len(columns) <= _MAX_ANNOTATED_CELLS:
        for y, row in enumerate(table):
            for x, value in enumerate(row):
                ink = "white" if value > 60 else "black"
                axes.text(x, y, f"{value:.0f}", ha="center", va="center", color=ink, fontsize="small")
    return figure


def _draw_layers(routed: dict[str, RoutingAccuracy]) -> Figure:
    figure, axes = _figure(4.0)
    for line, (mode, routing) in zip(_lines(), routed.items(), strict=False):
        layers = [layer.rpartition(".")[2] or "outside" for layer in routing.layers]
        axes.plot(
            range(len(layers)),
            [100 * each for each in routing.layers.values()],
            line,
            label=mode,
            markersize=4,
        )
        step = -(-len(layers) // 16)
        axes.set_xticks(range(0, len(layers), step), layers[::step])
    axes.set_xlabel("layer")
    return _finish_accuracy(figure, axes)


def _draw_positions(routed: dict[str, RoutingAccuracy]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 4.0), dpi=_DOTS_PER_INCH, layout="constrained")
    parts = figure.subplots(1, 2, sharey=True)
    for axes, answer in zip(parts, (False, True), strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        for line, (mode, routing) in zip(_lines(), routed.items(), strict=False):
            here = [position for position in routing.positions if position.answer is answer]
            axes.plot(
                [each.position for each in here], [100 * each.accuracy for each in here], line, label=mode
            )
        axes.set_xlabel(f"token of the {'answer' if answer else 'prompt'}, from 0")
    return _finish_accuracy(figure, parts[0])


def _finish_accuracy(figure: Figure, axes: Axes) -> Figure:
    axes.set_ylim(-3, 103)
    axes.set_ylabel("routing accuracy, in %")
    axes.legend(frameon=False, fontsize="small")
    return figure


def _lines() -> Iterator[str]:
    # Lines differ by marker as well as by colour.
    yield from ("o-C0", "s--C1", "^-.C2", "v:C3", "D-C4", "P--C5", "X-.C6", "*:C7")
