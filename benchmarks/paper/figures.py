"""The figures of the measurement, from the committed rows and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.pages import Row
from benchmarks.svg import BLUE, GREY, bars, drawing

from .decisions import FORMS
from .summary import confidences_of, shown_set, summaries_of
from .ways import BASE, MEMBER, PROMPT

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SCORES, ROC = IMAGES / "paper.svg", IMAGES / "foreign.svg"
# By the rows' names; the order is that of the figure.
SHOWN = {
    MEMBER: "the right adapter is named",
    "prompt": "routed, one decision for the prompt",
    "prompt+token": "routed, for the prompt and then by token",
    "segment": "routed, segment by segment",
    "token": "routed, token by token",
    "LoRA-F": "one adapter trained on all tasks (LoRA-F)",
    "nearest centroid": "the adapter of the nearest mean embedding",
    "arrow": "Arrow: gates from the adapters' factors alone",
    "uniform": "all at once, equal weights",
    "weighted adapter": "merged by PEFT's add_weighted_adapter",
    BASE: "the base alone",
}
_SIDE, _MARGIN = 320, 60
_STROKES = {"foreign": BLUE, "general": "#c2571a"}
_DASHES = {"plain": "", "chat": ' stroke-dasharray="6 4"'}
_NAMES = {"foreign": "other tasks", "general": "general questions"}


def write_figures(rows: Sequence[Row]) -> None:
    """Write every figure anew for which there are rows."""
    for path, text in figures_of(rows).items():
        path.write_text(text, encoding="utf-8")


def figures_of(rows: Sequence[Row]) -> dict[Path, str]:
    """Return the figures as SVG by the file that each belongs in; none without its rows."""
    members = shown_set(rows)
    found = {SCORES: draw_scores(rows, members), ROC: draw_roc(rows, members)}
    return {path: text for path, text in found.items() if text}


def draw_scores(rows: Sequence[Row], members: str | None) -> str:
    """Return a bar for the mean of each way that has answered every test item; empty without any."""
    found = summaries_of(rows, members)
    ways = [way for way in SHOWN if way in found]
    if PROMPT.name not in ways:
        return ""
    title = "Mean score of the paper's tasks on their test items, in %; line: 95 % interval"
    shown = [(SHOWN[way], found[way]["mean"], _ends(found[way])) for way in ways]
    return bars(title, shown, blue=ways.index(PROMPT.name))


def _ends(row: Row) -> tuple[float, float]:
    low, high = row["interval"] or (row["mean"], row["mean"])
    return low, high


def draw_roc(rows: Sequence[Row], members: str | None) -> str:
    """Return the ROC of leaving prompts to the base, by group and form; empty without rows."""
    found = confidences_of(rows, members)
    if not found:
        return ""
    title = "Prompts that no adapter is for: left to the base"
    height = _SIDE + 2 * _MARGIN + 20 * 4
    left, bottom = _MARGIN, _MARGIN + _SIDE
    lines = [
        f'<rect x="{left}" y="{_MARGIN}" width="{_SIDE}" height="{_SIDE}" fill="none" stroke="{GREY}"/>',
        f'<path d="M{left} {bottom}L{left + _SIDE} {_MARGIN}" stroke="{GREY}" stroke-dasharray="2 3"/>',
        f'<text x="{left + _SIDE / 2}" y="{bottom + 20}" text-anchor="middle">'
        "own prompts lost, 0 to 100 %</text>",
        f'<text x="{left - 12}" y="{_MARGIN + _SIDE / 2}" text-anchor="middle" '
        f'transform="rotate(-90 {left - 12} {_MARGIN + _SIDE / 2})">left to the base, 0 to 100 %</text>',
    ]
    curves = [
        (group, form, words) for group in _STROKES for form, words in FORMS.items() if (group, form) in found
    ]
    for place, (group, form, words) in enumerate(curves):
        style = f'stroke="{_STROKES[group]}" stroke-width="2" fill="none"{_DASHES[form]}'
        points = curve_of(found["own", form], found[group, form])
        path = "L".join(f"{left + _SIDE * x:.1f} {bottom - _SIDE * y:.1f}" for x, y in points)
        at = bottom + 44 + 20 * place
        lines += [
            f'<path d="M{path}" {style}/>',
            f'<path d="M{left} {at - 4}h36" {style}/>',
            f'<text x="{left + 44}" y="{at}">{_NAMES[group]}, {words}</text>',
        ]
    return drawing(_SIDE + 2 * _MARGIN, height, title, lines)


def curve_of(own: Sequence[float], others: Sequence[float]) -> list[tuple[float, float]]:
    """Return the corners of the ROC: for each threshold the part of either whose confidence is below it."""
    ends = sorted({*own, *others})
    parts = [[sum(each < end for each in group) / len(group) for end in ends] for group in (own, others)]
    return [*zip(*parts, strict=True), (1.0, 1.0)]
