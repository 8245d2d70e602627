"""Committed rows, the section of a page that is made from them, and the lines of its tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_row(row: Row, path: Path | None) -> None:
    """Append one row to a file, or print it; a run that is ended keeps those that it wrote."""
    line = json.dumps(row)
    if path is None:
        print(line, flush=True)
    else:
        with path.open("a", encoding="utf-8") as out:
            out.write(f"{line}\n")


def with_section(page: str, start: str, end: str, section: str) -> str:
    """Return a page with another section between two marks.

    Raises:
        ValueError: the page does not have each mark once.
    """
    before, rest = page.split(start)
    _, after = rest.split(end)
    return f"{before}{start}\n{section}{end}{after}"


def table(*headings: str) -> list[str]:
    """Return the first two lines of a table."""
    return [line(*headings), "|---" * len(headings) + "|"]


def line(*cells: object) -> str:
    """Return one line of a table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def percent(part: float) -> str:
    """Return a part in per cent."""
    return f"{100 * part:.1f} %"
