"""The table of detectors in docs/gates.md, from the committed rows and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from meteora_registry.scores.proportions import area_under_curve, wilson_interval

Row = dict[str, Any]
ROWS = Path("benchmarks/results/abstention.jsonl")
PAGE = Path("docs/gates.md")
START, END = "<!-- generated: abstention -->", "<!-- end -->"
FORMS = ("plain", "chat")
SHARE = 0.05

# Of a prompt: its familiarity in standard deviations of held-out prompts, the ratio, and the best posterior.
Score = Callable[[float, float, float], float]
DETECTORS: dict[str, Score] = {
    "confidence: the best member's posterior among members": lambda _f, _r, among: among,
    "background classes": lambda _f, ratio, _a: ratio,
    "relative Mahalanobis distance": lambda familiarity, _r, _a: familiarity,
    "**both, the product's**": lambda familiarity, ratio, _a: familiarity - softplus(-ratio),
}


def softplus(value: float) -> float:
    """Return log(1 + exp(value))."""
    return value if value > 30 else math.log1p(math.exp(value))


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_table(rows: Path, page: Path) -> None:
    """Write the generated section of the page anew.

    Raises:
        ValueError: the page lacks the section's marks.
    """
    text = page.read_text(encoding="utf-8")
    if text.count(START) != 1:
        raise ValueError(f"`{page}` has `{START}` {text.count(START)} times, expected once")
    before, _, rest = text.partition(START)
    after = rest.partition(END)[2]
    page.write_text(before + "\n".join([START, *table(read_rows(rows)), END]) + after, encoding="utf-8")


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the section: for each stage the accuracy of decisions, and every detector."""
    for stage in ("development", "test"):
        own = [row for row in rows if row["stage"] == stage]
        yield f"**{stage.capitalize()}**: {', '.join(_accuracy(own, form) for form in FORMS)}."
        yield ""
        yield (
            "| detector | asked | own prompts lost | other tasks left to the base | general questions left "
            "| AUROC: tasks | questions |"
        )
        yield "|---|---|---|---|---|---|---|"
        for name, score in DETECTORS.items():
            yield from _detector(name, own, score)
        yield ""


def _accuracy(rows: Sequence[Row], form: str) -> str:
    right = [
        decided == row["task"]
        for row in rows
        if row["form"] == form and row["group"] in ("own", "held out")
        for decided in row["decided"]
    ]
    return f"{sum(right)} of {len(right)} decided rightly ({form})"


def _detector(name: str, rows: Sequence[Row], score: Score) -> Iterator[str]:
    familiar = [value for row in rows if row["group"] == "held out" for value in row["familiarity"]]
    centre, spread = mean(familiar), stdev(familiar)

    def scores(group: str, form: str) -> list[float]:
        return [
            score((familiarity - centre) / spread, ratio, among)
            for row in rows
            if (row["group"], row["form"]) == (group, form)
            for familiarity, ratio, among in zip(
                row["familiarity"], row["ratio"], row["among_members"], strict=True
            )
        ]

    threshold = min(_threshold(scores("held out", form)) for form in FORMS)
    for form in FORMS:
        own, foreign, general = (scores(group, form) for group in ("own", "foreign", "general"))
        cells = (
            name,
            form,
            _share(own, threshold, with_interval=True),
            _share(foreign, threshold),
            _share(general, threshold),
            f"{area_under_curve(own, foreign):.3f}",
            f"{area_under_curve(own, general):.3f}",
        )
        yield f"| {' | '.join(cells)} |"


def _threshold(held_out: Sequence[float]) -> float:
    return sorted(held_out)[math.floor(SHARE * (len(held_out) + 1) + 1e-9) - 1]


def _share(scores: Sequence[float], threshold: float, *, with_interval: bool = False) -> str:
    left = sum(score < threshold for score in scores)
    found = f"{100 * left / len(scores):.1f} %"
    if not with_interval:
        return found
    low, high = wilson_interval(left, len(scores))
    return f"{found} ({100 * low:.1f}-{100 * high:.1f}), {left} of {len(scores)}"
