"""Block sizes of the Triton kernels: a static table by architecture, kernel and number of tokens.

No kernel tunes itself while a model runs: ``triton.autotune`` measures in the hot path, chooses differently
from run to run, and cannot run inside a graph capture. ``python -m meteora_registry.kernels.gpu_tune``
measures on a machine and writes its architecture's rows into ``gpu_table.json``; where it never ran, the
rows of ``default`` serve, and Triton's interpreter has its own, with blocks as large as can be since it
pays per operation and not per element.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

TABLE = Path(__file__).with_name("gpu_table.json")
# Tokens that share a row and, as no tile is smaller, a grid. Limits of rows are multiples of it.
BUCKET_TOKENS = 16
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True, slots=True)
class Blocks:
    """One row: tile extents, launch options, and how many programs a split over d should reach.

    Attributes:
        tokens: tokens per tile, a power of two of at least 16.
        rank: ranks (or rows of A, or of N) per tile, at most.
        bytes: width of a step over the reduced features, in bytes of the operands' dtype.
        features: features per tile of the result.
        programs: a reduction over d is split until the grid has this many programs.
        warps: warps per program.
        stages: stages of the software pipeline.
    """

    tokens: int
    warps: int
    stages: int
    rank: int = 16
    bytes: int = 128
    features: int = 128
    programs: int = 1

    def halved(self) -> Blocks:
        """Return the row with its tiles halved, none below what `tl.dot` takes."""
        tokens, rank, features = (max(16, extent // 2) for extent in (self.tokens, self.rank, self.features))
        return replace(self, tokens=tokens, rank=rank, features=features)


# Rows that replace the table's, by kernel: while the tuner tries them, and in tests.
OVERRIDES: dict[str, Blocks] = {}


def blocks_for(kernel: str, tokens: int, device: torch.device, dtype: torch.dtype) -> Blocks:
    """Return the row of the first bucket that holds `tokens` on the device's architecture.

    Exact fp32 products run beside the tensor cores, on registers: their tiles are halved each way, or they
    spill.
    """
    if kernel in OVERRIDES:
        return OVERRIDES[kernel]
    key = architecture(device)
    row = next(row for limit, row in _rows(key, kernel) if limit is None or tokens <= limit)
    return row.halved() if dtype == torch.float32 and key != "interpreter" else row


@functools.cache
def architecture(device: torch.device) -> str:
    """Return the table's key for a device: ``sm90`` and the like, or ``interpreter``."""
    if INTERPRETED:
        return "interpreter"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"


@functools.cache
def _rows(key: str, kernel: str) -> list[tuple[int | None, Blocks]]:
    table = read_table()
    rows = table.get(key, {}).get(kernel) or table["default"][kernel]
    return [
        (row["max_tokens"], Blocks(**{n: v for n, v in row.items() if n != "max_tokens"})) for row in rows
    ]


def read_table() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return the table as stored on disk."""
    table: dict[str, dict[str, list[dict[str, Any]]]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table
