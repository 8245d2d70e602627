"""The figure of docs/gates.md: scores on single questions of the test, from the committed rows alone.

It is written as text and not by a plotting library, so that the same rows give the same bytes everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from .rows import Row, interval_of, mean_of, read_rows
from .tables import percent, scores

FIGURE = Path("docs/images/results.svg")
# By the rows' names; the order is that of the figure.
SHOWN = {
    "oracle": "the right adapter is named (oracle)",
    "gate fit prompt k=1": "routed, one decision for the prompt",
    "lda without 4 prompt+token k=1": "routed, for the prompt and then by token",
    "lda without 4 token k=1": "routed, token by token",
    "arrow token k=1": "Arrow: gates from the adapters' factors alone",
    "uniform": "all seven at once, equal weights",
    "weighted": "merged by PEFT's add_weighted_adapter",
    "base": "the base alone",
}
OURS = "gate fit prompt k=1"
_WIDTH, _ROW, _LEFT, _BAR = 760, 26, 330, 320


def write_figure(rows_file: Path, figure: Path = FIGURE) -> None:
    """Write the figure anew."""
    figure.write_text(draw(read_rows(rows_file)), encoding="utf-8")


def draw(rows: Sequence[Row]) -> str:
    """Return the figure as SVG."""
    found = {row["way"]: row for row in scores(rows, "test", "single")}
    lines = [line for place, way in enumerate(SHOWN) for line in _bar(place, way, found[way])]
    height = 44 + _ROW * len(SHOWN) + 8
    count = found["oracle"]["texts"]
    title = f"{count} test questions of seven tasks, answered exactly right; line: 95 % interval"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
            f'height="{height}" font-family="sans-serif" font-size="13" fill="#222">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
            f'<text x="{_WIDTH // 2}" y="24" text-anchor="middle">{escape(title)}</text>',
            *lines,
            "</svg>\n",
        ]
    )


def _bar(place: int, way: str, row: Row) -> list[str]:
    top = 40 + place * _ROW
    middle = top + _ROW / 2
    low, high = (_LEFT + _BAR * bound for bound in interval_of(row))
    mean = mean_of(row)
    colour = "#2f6db5" if way == OURS else "#a9b8c9"
    text = middle + 4.5
    return [
        f'<text x="{_LEFT - 8}" y="{text}" text-anchor="end">{escape(SHOWN[way])}</text>',
        f'<rect x="{_LEFT}" y="{top + 4}" width="{_BAR * mean:.1f}" height="{_ROW - 8}" fill="{colour}"/>',
        f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="#222" stroke-width="1.5"/>',
        f'<text x="{max(high, _LEFT + _BAR * mean) + 8:.1f}" y="{text}">{percent(mean)}</text>',
    ]
