"""Writes ``docs/forgeries.md`` from the committed rows: ``python docs/generate_forgeries.py``."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_name("forgeries.md")
ROWS = Path(__file__).resolve().parent.parent / "tests" / "forgeries" / "answers.jsonl"
WAYS = ("integrity", "source", "push", "pull", "load")
PREFACE = """# Forged bundles

Written by `docs/generate_forgeries.py` from the rows in `tests/forgeries/`, which
`PYTHONPATH=tests python tests/forgeries/write.py` makes and a test makes again.

{count} changes to sound bundles, most of them by a forger who knows the format and mends every digest, the
manifest and the record, so that they agree. Each is put to five ways of using a bundle:

| column | asks |
|---|---|
| intact | `verify --level integrity` |
| members | `verify --level source`, in the home that fused the bundle, which has the members' own files |
| push | `push` from that home |
| pull | `pull` of the forged repository in another home |
| loader | `load_bundle` without `verify`; with `verify="intact"` it asks what the first column asks |

Every refusal comes before anything is published or kept. *inconclusive* (exit code 3) means that a check
could not be made. No check but that of a signature proves who made a bundle: what a publisher may choose is
accepted, and the reason names that. {counts}

| forged | intact | members | push | pull | loader | first message | why |
|---|---|---|---|---|---|---|---|
"""


def render() -> str:
    """Return the whole page."""
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    kinds = Counter(_kind(row) for row in rows)
    counts = "; ".join(f"{kinds[kind]} are {kind}" for kind in sorted(kinds)) + "."
    return PREFACE.format(count=len(rows), counts=counts) + "".join(map(_line, rows))


def _kind(row: dict[str, Any]) -> str:
    refusing = [way for way in WAYS if row["answers"][way]["answer"] == "refused"]
    if len(refusing) == len(WAYS):
        return "refused by every way"
    return "refused by some" if refusing else "refused by none"


def _line(row: dict[str, Any]) -> str:
    answers = row["answers"]
    told = next((answers[way]["message"] for way in WAYS if answers[way]["message"]), "")
    cells = [row["forged"], *(answers[way]["answer"] for way in WAYS), _one_line(told), row["why"]]
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n"


def _one_line(message: str) -> str:
    shown = message if len(message) <= 140 else f"{message[:137]}..."
    # A message is shown as text: it has quotations of its own, and what it quotes may be unprintable.
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in shown)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
