"""The figure of docs/gates.md: scores on single questions of the test, from the committed rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.svg import bars

from .rows import Row, interval_of, mean_of, read_rows
from .tables import scores

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


def write_figure(rows_file: Path, figure: Path = FIGURE) -> None:
    """Write the figure anew."""
    figure.write_text(draw(read_rows(rows_file)), encoding="utf-8")


def draw(rows: Sequence[Row]) -> str:
    """Return the figure as SVG."""
    found = {row["way"]: row for row in scores(rows, "test", "single")}
    count = found["oracle"]["texts"]
    title = f"{count} test questions of seven tasks, answered exactly right; line: 95 % interval"
    shown = [(words, mean_of(found[way]), interval_of(found[way])) for way, words in SHOWN.items()]
    return bars(title, shown, blue=list(SHOWN).index(OURS))
