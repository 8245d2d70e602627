"""The committed rows of the verdict matrix, and the disagreements that are known today."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from .verdict_matrix import FileRow, Row

FOLDER = Path(__file__).resolve().parents[1] / "matrix"
OPTIONS_FILE = FOLDER / "options.csv"
FILES_FILE = FOLDER / "files.csv"
KNOWN_FILE = FOLDER / "known.toml"


@dataclass(frozen=True)
class Known:
    """A reason why verdicts disagree with PEFT today: the cases it explains and how many rows these are."""

    table: str
    reason: str
    cases: tuple[str, ...]
    rows: int


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


def read_known() -> tuple[Known, ...]:
    """Return the known disagreements."""
    listed = tomllib.loads(KNOWN_FILE.read_text(encoding="utf-8"))["disagreement"]
    return tuple(Known(each["table"], each["reason"], tuple(each["cases"]), each["rows"]) for each in listed)


def explained_by(row: Row | FileRow) -> Known | None:
    """Return the known disagreement that a row belongs to, if it breaches the law for a known reason."""
    table = "options" if isinstance(row, Row) else "files"
    for known in read_known():
        if row.breaches and known.table == table and row.case in known.cases:
            return known
    return None
