"""The committed rows of the verdict matrix."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from io import StringIO
from pathlib import Path

from .verdict_matrix import FileRow, Row

FOLDER = Path(__file__).resolve().parents[1] / "matrix"
OPTIONS_FILE = FOLDER / "options.csv"
FILES_FILE = FOLDER / "files.csv"


def read_option_rows() -> list[Row]:
    """Return the rows of the options of ``LoraConfig``."""
    return [Row(**cells) for cells in _read(OPTIONS_FILE)]


def read_file_rows() -> list[FileRow]:
    """Return the rows of the files that PEFT did not save."""
    return [FileRow(**cells) for cells in _read(FILES_FILE)]


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # Whether a row disagrees with the law is worked out anew.
    return [{name: value for name, value in row.items() if name != "disagrees"} for row in rows]


def render_rows(rows: Iterable[Row | FileRow]) -> str:
    """Return the text of a file of rows, in their order."""
    cells = [row.cells() for row in rows]
    file = StringIO()
    writer = csv.DictWriter(file, list(cells[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(cells)
    return file.getvalue()
