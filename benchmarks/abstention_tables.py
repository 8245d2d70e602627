"""The table of detectors in docs/gates-tables.md, from the committed rows and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev

from benchmarks.pages import Row, read_rows
from meteora_registry.runtime.fitting.request_gates import safe_rank
from meteora_registry.schemas.gate_choices import forms_of
from meteora_registry.scores.proportions import area_under_curve, wilson_interval

ROWS = Path("benchmarks/results/abstention.jsonl")
PAGE = Path("docs/gates-tables.md")
START, END = "<!-- generated: abstention -->", "<!-- end -->"
FORMS = forms_of("both")
SHARE = 0.05

# Of a prompt: its familiarity in standard deviations of held-out prompts, the ratio, and the best posterior.
Score = Callable[[float, float, float], float]
# From the number of held-out prompts and the share that may be lost: the rank of the threshold among them.
Rank = Callable[[int, float], int]


def average_rank(count: int, share: float) -> int:
    """Return the rank that keeps a share on average over draws, and not in 19 of 20."""
    return math.floor(share * (count + 1) + 1e-9)


def _both(familiarity: float, ratio: float, _: float) -> float:
    return familiarity - softplus(-ratio)


DETECTORS: dict[str, tuple[Score, Rank]] = {
    "the best member's posterior among members": (lambda _f, _r, among: among, safe_rank),
    "background classes": (lambda _f, ratio, _a: ratio, safe_rank),
    "relative Mahalanobis distance": (lambda familiarity, _r, _a: familiarity, safe_rank),
    "**both, the product's**": (_both, safe_rank),
    "both, with 5 % lost on average": (_both, average_rank),
}


def softplus(value: float) -> float:
    """Return log(1 + exp(value))."""
    return value if value > 30 else math.log1p(math.exp(value))


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
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        (fit,) = (row for row in own if row["group"] == "fit")
        layers = ", ".join(path.split(".")[2] for path in fit["modules"])
        yield (
            f"**{stage.capitalize()}**, {len(fit['members'])} members: the fit chose the layers {layers}; "
            f"{', '.join(_accuracy(own, form) for form in FORMS)}."
        )
        yield ""
        yield (
            "| detector | asked | own prompts lost | other tasks left to the base | general questions left "
            "| AUROC: tasks | questions |"
        )
        yield "|---|---|---|---|---|---|---|"
        for name, (score, rank) in DETECTORS.items():
            yield from _detector(name, own, score, rank)
        yield ""


def _accuracy(rows: Sequence[Row], form: str) -> str:
    right = [
        decided == row["task"]
        for row in rows
        if (row["group"], row.get("form")) == ("own", form)
        for decided in row["decided"]
    ]
    return f"{sum(right)} of {len(right)} decided rightly ({form})"


def _detector(name: str, rows: Sequence[Row], score: Score, rank: Rank) -> Iterator[str]:
    familiar = [value for row in rows if row["group"] == "held out" for value in row["familiarity"]]
    centre, spread = mean(familiar), stdev(familiar)

    def scores(group: str, form: str) -> list[float]:
        return [
            score((familiarity - centre) / spread, ratio, among)
            for row in rows
            if (row["group"], row.get("form")) == (group, form)
            for familiarity, ratio, among in zip(
                row["familiarity"], row["ratio"], row["among_members"], strict=True
            )
        ]

    held_out = [scores("held out", form) for form in FORMS]
    threshold = min(sorted(each)[rank(len(each), SHARE) - 1] for each in held_out)
    for form in FORMS:
        own, foreign, general = (scores(group, form) for group in ("own", "foreign", "general"))
        cells = (
            name,
            form,
            _share(own, threshold),
            _share(foreign, threshold),
            _share(general, threshold),
            f"{area_under_curve(own, foreign):.3f}",
            f"{area_under_curve(own, general):.3f}",
        )
        yield f"| {' | '.join(cells)} |"


def _share(scores: Sequence[float], threshold: float) -> str:
    left = sum(score < threshold for score in scores)
    low, high = wilson_interval(left, len(scores))
    return f"{100 * left / len(scores):.1f} % ({100 * low:.1f}-{100 * high:.1f}), {left} of {len(scores)}"
