"""The table in docs/catalog-speed.md, from rows: ``python -m benchmarks.run catalog-table FILE``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
DATABASES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}


def main(arguments: list[str]) -> None:
    """Print the table of one file of rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run catalog-table", description=__doc__)
    parser.add_argument("rows", type=Path)
    path: Path = parser.parse_args(arguments).rows
    sys.stdout.write(document(path))


def document(path: Path) -> str:
    """Return the lines for the page."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return "\n".join(_lines(rows)) + "\n"


def _lines(rows: list[Row]) -> Iterator[str]:
    found = {(row["database"], row["case"]): row for row in rows}
    cases = list(dict.fromkeys(row["case"] for row in rows))
    servers = ", ".join(dict.fromkeys(row["server"] for row in rows))
    yield f"{rows[0]['device']}; {servers}; Python {rows[0]['python']}, SQLAlchemy {rows[0]['sqlalchemy']}."
    yield ""
    yield f"| p50 (p80) in ms | {' | '.join(DATABASES.values())} |"
    yield "|---" * (1 + len(DATABASES)) + "|"
    for case in cases:
        cells = (_cell(found.get((database, case))) for database in DATABASES)
        yield f"| {case} | {' | '.join(cells)} |"
    yield ""
    for database, name in DATABASES.items():
        for what in ("record", "add"):
            first, last = (_median(found, database, f"{what}, {which} ") for which in ("first", "last"))
            if first and last:
                yield f"- {name}: the last `{what}` took {last / first:.2f} times as long as the first."


def _cell(row: Row | None) -> str:
    return "-" if row is None else f"{row['p50']:.1f} ({row['p80']:.1f})"


def _median(found: dict[tuple[str, str], Row], database: str, start: str) -> float | None:
    medians = (row["p50"] for (of, case), row in found.items() if of == database and case.startswith(start))
    return next(medians, None)
