"""The committed rows: what each way answers for each forgery, and why that is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parents[2] / "forgeries" / "answers.jsonl"
Row = dict[str, Any]


def read_rows() -> dict[str, Row]:
    """Return the rows by the names of their forgeries."""
    rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    return {row["name"]: row for row in rows}


def write_rows(rows: list[Row]) -> None:
    FILE.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
