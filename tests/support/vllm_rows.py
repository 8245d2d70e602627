"""The committed rows of what a real vLLM engine made of adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .vllm_matrix import ServedRow

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "vllm.jsonl"


def read_lines(subject: str) -> list[dict[str, Any]]:
    """Return the rows on one subject."""
    rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    return [
        {name: value for name, value in row.items() if name != "subject"}
        for row in rows
        if row["subject"] == subject
    ]


def read_rows() -> list[ServedRow]:
    """Return the rows of adapters."""
    return [ServedRow(**cells) for cells in read_lines("adapter")]
