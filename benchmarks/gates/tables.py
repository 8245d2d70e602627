"""The tables and the plot of docs/gates-tables.md, from the committed rows and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.pages import line, percent, table

from .rows import Row, by_task, interval_of, mean_of, read_rows, whole_of

PAGE = Path("docs/gates-tables.md")
PLOT = Path("benchmarks/results/gates.svg")
START = "<!-- generated: {} -->"
END = "<!-- end -->"
THRESHOLDS = (None, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)


def write_tables(rows_file: Path, page: Path = PAGE, plot: Path = PLOT) -> None:
    """Write every generated section of the page anew, and the plot.

    Raises:
        ValueError: the page lacks a section's marks.
    """
    rows = read_rows(rows_file)
    text = page.read_text(encoding="utf-8")
    for name, lines in sections(rows).items():
        start = START.format(name)
        if text.count(start) != 1:
            raise ValueError(f"`{page}` has `{start}` {text.count(start)} times, expected once")
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(END)
        text = before + "\n".join([start, *lines, END]) + after
    page.write_text(text, encoding="utf-8")
    draw(rows, plot)


def sections(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return the lines of each generated section by its name."""
    found = {"adapters": list(adapters(rows)), "fit": list(fits(rows)), "outside": list(outside(rows))}
    for stage in ("validation", "test"):
        found[f"{stage} single"] = list(single(scores(rows, stage, "single")))
        for size in (3, 5):
            found[f"{stage} composite-{size}"] = list(composite(scores(rows, stage, f"composite-{size}")))
    return found


def scores(rows: Iterable[Row], stage: str, name: str) -> list[Row]:
    """Return the score rows of one set at one stage, the best first; of a repeated one the last counts."""
    last = {
        row["way"]: row
        for row in rows
        if row["kind"] == "score" and row["stage"] == stage and row["set"] == name
    }
    return sorted(last.values(), key=lambda row: -mean_of(row))


def adapters(rows: Iterable[Row]) -> list[str]:
    """Return the table of the adapters."""
    lines = table(
        "adapter", "rank", "scaling", "target modules", "steps", "processor time", "sha256 of the weights"
    )
    for row in rows:
        if row["kind"] == "adapter":
            recipe = row["recipe"]
            targets = ", ".join(target.removesuffix("_proj") for target in recipe["targets"])
            scaling = "rsLoRA" if recipe["rslora"] else "alpha / r"
            cells = (row["task"], recipe["rank"], scaling, targets, row["steps"])
            lines.append(line(*cells, f"{row['processor_seconds']:.0f} s", f"`{row['weights_sha256'][:16]}`"))
    return lines


def fits(rows: Iterable[Row]) -> list[str]:
    """Return what fitting cost."""
    lines = table("command", "members", "wall", "processor time", "peak memory of the process")
    for row in rows:
        if row["kind"] == "fit":
            seconds = [f"{row[key]:.0f} s" for key in ("wall_seconds", "processor_seconds")]
            lines.append(
                line(f"`{row['command']}`", row["members"], *seconds, f"{row['peak_bytes'] / 1e9:.2f} GB")
            )
    return lines


def single(rows: Sequence[Row]) -> list[str]:
    """Return the table of one set of isolated items, every way beside the oracle."""
    oracle = oracle_of(rows)
    if oracle is None:
        return ["Not measured."]
    lines = table(
        "served by", "mean of the tasks", "of the oracle", "least member", "decided rightly", "tokens rightly"
    )
    own = {task: np.mean(right) for task, right in by_task(oracle).items() if right}
    for row in rows:
        parts = {task: np.mean(right) / max(own[task], 1e-9) for task, right in by_task(row).items() if right}
        least = min(parts, key=lambda task: parts[task])
        decided = row["decided_rightly"]
        lines.append(
            line(
                row["way"],
                with_interval(mean_of(row), interval_of(row)),
                with_interval(ratio(row, oracle), interval_of(row, oracle)),
                f"{least} {percent(float(parts[least]))}",
                percent(float(np.mean(decided))) if decided else "",
                tokens_rightly(row),
            )
        )
    return [f"{oracle['texts']} items.", "", *lines, "", *tasks_table(rows)]


def tasks_table(rows: Sequence[Row]) -> list[str]:
    """Return the score of every task by every way."""
    names = [task for task, right in by_task(rows[0]).items() if right]
    lines = table("served by", *names)
    for row in rows:
        right = by_task(row)
        lines.append(line(row["way"], *(percent(float(np.mean(right[name]))) for name in names)))
    return lines


def composite(rows: Sequence[Row]) -> list[str]:
    """Return the table of one set of composite prompts."""
    oracle = oracle_of(rows)
    if oracle is None:
        return ["Not measured."]
    lines = table("served by", "segments right", "of the oracle", "whole prompts right", "tokens rightly")
    for row in rows:
        lines.append(
            line(
                row["way"],
                with_interval(mean_of(row), interval_of(row)),
                with_interval(ratio(row, oracle), interval_of(row, oracle)),
                percent(whole_of(row)),
                tokens_rightly(row),
            )
        )
    segments = sum(map(len, oracle["right"]))
    return [f"{oracle['texts']} prompts, {segments} segments.", "", *lines]


def outside(rows: Sequence[Row]) -> list[str]:
    """Return how often the base alone serves, of foreign prompts and of the tasks' own, by threshold."""
    confidences = _confidences(rows)
    if not confidences:
        return ["Not measured."]
    lines = table("threshold", *(label for label, _ in confidences))
    for threshold in THRESHOLDS:
        cells = (np.mean([each < (threshold or 0) for each in found]) for _, found in confidences)
        lines.append(line("none" if threshold is None else threshold, *(percent(float(c)) for c in cells)))
    served = [
        line(row["form"], row["abstain"] or "none", percent(float(np.mean(row["as_base"]))))
        for row in rows
        if row["kind"] == "out of domain"
    ]
    return [*lines, "", *table("foreign prompts", "threshold", "the very text of the base"), *served]


def _confidences(rows: Sequence[Row]) -> list[tuple[str, list[float]]]:
    foreign = [
        (f"left to the base: foreign, {row['form']}", row["confidence"])
        for row in rows
        if row["kind"] == "out of domain" and row["abstain"] is None
    ]
    own = [("the tasks' own (validation)", row["confidence"]) for row in rows if row["kind"] == "in domain"]
    return foreign + own


def draw(rows: Sequence[Row], plot: Path) -> None:
    """Draw the test's results: every way's part of the oracle, with its interval, by set."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    sets = ("single", "composite-3", "composite-5")
    mpl.rcParams["svg.hashsalt"] = "gates"
    figure, axes = plt.subplots(1, len(sets), figsize=(11, 3.6), layout="constrained")
    for axis, name in zip(axes, sets, strict=True):
        found = scores(rows, "test", name)
        oracle = oracle_of(found)
        axis.set_title(name)
        if oracle is None:
            continue
        shown = [row for row in found if row["way"] != "oracle"][::-1]
        middles = [ratio(row, oracle) for row in shown]
        bounds = [interval_of(row, oracle) for row in shown]
        errors = [[m - low for m, (low, _) in zip(middles, bounds, strict=True)]]
        errors.append([high - m for m, (_, high) in zip(middles, bounds, strict=True)])
        axis.barh([row["way"] for row in shown], middles, xerr=np.maximum(errors, 0), color="#4c78a8")
        axis.axvline(1.0, color="#333333", linewidth=0.8)
        axis.set_xlabel("part of the oracle's score")
        axis.tick_params(labelsize=7)
    plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(plot, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def oracle_of(rows: Iterable[Row]) -> Row | None:
    """Return the oracle's row of one set, None before it was measured."""
    return next((row for row in rows if row["way"] == "oracle"), None)


def tokens_rightly(row: Row) -> str:
    """Return the cell of the tokens that were served by their own member; empty where nothing was routed."""
    served = row["served_rightly"]
    return "" if served is None else percent(served)


def ratio(row: Row, oracle: Row) -> float:
    """Return a row's mean as a part of the oracle's."""
    return mean_of(row) / max(mean_of(oracle), 1e-9)


def with_interval(part: float, interval: tuple[float, float]) -> str:
    """Return a part in per cent with its interval."""
    return f"{percent(part)} ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})"
