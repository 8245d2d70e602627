"""The file of rows, which outlives a run that is killed at any moment.

A row is one line. A last line without its end is what a killed run left: it is not read, and dropped before
the next row is written. Rows have scores, decisions and digests, and never a question or an answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.pages import Row
from meteora_registry.files.lines import growing_lines


class RowsFile:
    """A file of rows with one writer."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Row]:
        """Return the whole rows; none if there is no file."""
        data = self.path.read_bytes() if self.path.exists() else b""
        return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]

    def append(self, row: Mapping[str, object]) -> None:
        """Add a row, behind the last whole one, and have it on the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with growing_lines(self.path, begins=b"{") as lines:
            lines.append(json.dumps(row, sort_keys=True).encode())


def of_kind(rows: Iterable[Row], kind: str, **facts: object) -> list[Row]:
    """Return the rows of a kind for which all these facts hold."""
    return [
        row
        for row in rows
        if row["kind"] == kind and all(row.get(name) == value for name, value in facts.items())
    ]


def last_by(rows: Iterable[Row], keys: Sequence[str]) -> dict[tuple[object, ...], Row]:
    """Return the last row of each combination of these keys."""
    return {tuple(row[key] for key in keys): row for row in rows}
