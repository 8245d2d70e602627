"""``eval compare``: two files with evaluations, item by item."""

from __future__ import annotations

from pathlib import Path

from ...files.reading import read_bounded
from ...schemas.evaluation import MAX_EVALUATION_BYTES, Comparison, Evaluation
from ...scores.comparison import compare
from ...scores.intervals import can_estimate


def compare_files(first: Path, second: Path) -> Comparison:
    """Return how the evaluation in the second file compares with the one in the first.

    Without scipy the differences have no intervals.

    Raises:
        SourceUnreadable: a file cannot be read.
        InvalidDocument: it is not an evaluation.
        UsageError: they did not ask the same.
    """
    return compare(_read(first), _read(second), with_intervals=can_estimate())


def _read(path: Path) -> Evaluation:
    data = read_bounded(path, MAX_EVALUATION_BYTES)
    return Evaluation.from_bytes(data, what=path.name, max_bytes=MAX_EVALUATION_BYTES)
