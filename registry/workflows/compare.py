"""``eval compare``: two files with evaluations, or two modes of one, item by item."""

from __future__ import annotations

from pathlib import Path

from ...files.reading import read_bounded
from ...schemas.errors import UsageError
from ...schemas.evaluation import MAX_EVALUATION_BYTES, Comparison, Evaluation, Mode
from ...scores.comparison import compare
from ...scores.intervals import can_estimate


def compare_files(
    first: Path, second: Path | None = None, *, modes: tuple[Mode, Mode] | None = None
) -> Comparison:
    """Return how the evaluation in the second file compares with the one in the first.

    Without scipy the differences have no intervals.

    Args:
        first: a file with an evaluation.
        second: another one; None to compare two modes of the first.
        modes: the mode of the first and that of the second; None for all that both have.

    Raises:
        SourceUnreadable: a file cannot be read.
        InvalidDocument: it is not an evaluation.
        UsageError: they did not ask the same, have no such modes, or there is one file and no modes.
    """
    if second is None and modes is None:
        raise UsageError(
            "there is one evaluation, expected a second one, or two modes of it",
            hint="add a second file, or for example `--modes member,routed`",
        )
    read = _read(first)
    other = read if second is None else _read(second)
    return compare(read, other, modes=modes, with_intervals=can_estimate())


def _read(path: Path) -> Evaluation:
    data = read_bounded(path, MAX_EVALUATION_BYTES)
    return Evaluation.from_bytes(data, what=path.name, max_bytes=MAX_EVALUATION_BYTES)
