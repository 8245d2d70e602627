"""A model of what the kernels cost: ``python -m benchmarks.run kernel-costs [--page]``.

Nothing here is measured. Each formulation is a list of launches, each with what it moves and computes for one
linear; a launch takes the longest of its parts, and a call the sum of its launches in a CUDA graph:

    memory    distinct bytes read and written, at the rate of a copy on an H200
    cache     bytes that several tiles read again, at the rate of its L2
    products  floating operations of the tiles as they are computed, padding included
    visits    a tile of tokens visits its adapters one after another: each waits for its rows
    launch    between two kernels of one graph

`previous` is the form before adapters of small rank got tiles of their own and before a few tokens took the
dense branch. Routings are uniform: each token's k adapters are any of L. Shapes are those of ``layout.py``.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kernel_points import RAGGED, Point
from benchmarks.pages import with_section
from meteora_registry.kernels.gpu_table import read_table

PAGE = Path(__file__).parent.parent / "docs" / "kernels.md"
START, END = "<!-- costs: written by benchmarks.kernel_costs -->", "<!-- end of costs -->"

# An H200: the rates of a copy through torch and of a product of 8192 x 8192 in bf16, of which no rows are
# kept; L2 and the latencies of a visit are read from disassembled code and the vendor's figures, not
# measured.
MEMORY = 4.3e12
CACHE = 5.5e12
BF16 = 7.8e14
# The gate's fp32 product runs beside the tensor cores, bound by shared memory.
FP32 = 1.7e13
LAUNCH_US = 2.0
SHRINK_VISIT_US, EXPAND_VISIT_US = 1.3, 1.95
SM_BYTES_US = 5.0e4
PROCESSORS, PROGRAMS_EACH = 132, 4
SPLITS = 16
LEAST_TILE = 16
BYTES = 2
DENSE_ROWS, DENSE_TOKENS, PREVIOUS_DENSE_TOKENS = 512, 8, 65
GATED_ROWS, GATED_TOKENS = 768, 64
TOKENS = (1, 4, 7, 8, 16, 64, 512, 4096)
SHOWN = (
    Point(T=1),
    Point(T=16),
    Point(T=64),
    Point(T=512),
    Point(T=4096),
    Point(T=1, ranks=64),
    Point(T=64, ranks=64),
    Point(T=512, ranks=64),
    Point(T=4096, ranks=64),
    Point(T=16, L=512),
    Point(T=4096, L=512),
    Point(T=16, ranks=RAGGED),
    Point(T=4096, ranks=RAGGED),
)
# Largest member of a ragged layout beside L - 1 of rank 8: within the dense branch, and far beyond it.
RAGGED_LAYOUTS = ((28, 64), (128, 256))


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch: bytes from memory, bytes from the cache, operations by rate, and time of visits."""

    memory: float
    cache: float = 0.0
    flop: float = 0.0
    rate: float = BF16
    visits_us: float = 0.0

    @property
    def us(self) -> float:
        """Return its microseconds in a CUDA graph."""
        parts = (self.memory / MEMORY, self.cache / CACHE, self.flop / self.rate)
        return max(*(1e6 * part for part in parts), self.visits_us) + LAUNCH_US


@dataclass(frozen=True, slots=True)
class Cost:
    """The launches of one call."""

    launches: tuple[Launch, ...]

    @property
    def us(self) -> float:
        """Return the microseconds of the call."""
        return sum(launch.us for launch in self.launches)

    @property
    def megabytes(self) -> float:
        """Return what the call moves from and to memory."""
        return sum(launch.memory for launch in self.launches) / 1e6

    @property
    def gflop(self) -> float:
        """Return what the call computes."""
        return sum(launch.flop for launch in self.launches) / 1e9


def present(p: Point, tokens: int) -> float:
    """Return how many adapters `tokens` of a uniform routing select, in the mean."""
    return p.L * (1.0 - (1.0 - p.k / p.L) ** tokens)


def floor(p: Point) -> Cost:
    """Return the least that any form moves and computes: x, the rows selected, the output twice."""
    share = present(p, p.T) / p.L
    rows = sum(p.rank_list)
    mean = rows / p.L
    moved = BYTES * (p.T * (p.h + 2 * p.D) + share * rows * (p.h + p.D))
    return Cost((Launch(moved, flop=2.0 * p.T * p.k * mean * (p.h + p.D)),))


def dense(p: Point) -> Cost:
    """Return two products over all adapters with a pass over z between them."""
    N = sum(p.rank_list)
    z = BYTES * p.T * N
    return Cost(
        (
            Launch(BYTES * (p.T + N) * p.h + z, flop=2.0 * p.T * N * p.h),
            Launch(2 * z),
            Launch(z + BYTES * (N + 2 * p.T) * p.D, flop=2.0 * p.T * N * p.D),
        )
    )


def visiting(p: Point, *, previous: bool) -> Cost:
    """Return shrink and expand, whose tiles of tokens visit the adapters that they selected."""
    shrink, expand = (_row(kernel, p.T) for kernel in ("shrink", "expand"))
    planes = 4.0 * _splits(p, shrink) * p.T * p.k * max(p.rank_list)
    x, out = BYTES * p.T * p.h, 2 * BYTES * p.T * p.D
    return Cost(
        (
            _visits(p, shrink, p.h, x + planes, _read_rows(p, shrink, narrow=not previous), SHRINK_VISIT_US),
            _visits(
                p, expand, p.D, out + planes, _read_rows(p, expand, masked=not previous), EXPAND_VISIT_US
            ),
        )
    )


def gated(p: Point, *, previous: bool) -> Cost:
    """Return a call with a gate, whichever form it takes."""
    x, N = BYTES * p.T * p.h, sum(p.rank_list)
    gate = Launch(x + 4.0 * p.L * p.h, flop=2.0 * p.T * p.L * p.h, rate=FP32)
    if p.T <= GATED_TOKENS and N <= GATED_ROWS and not _takes_dense(p, previous=previous):
        project = Launch(x + (4.0 * p.L + BYTES * N) * p.h, flop=2.0 * p.T * N * p.h)
        return Cost((project, visiting(p, previous=previous).launches[1]))
    return Cost((gate, Launch(4.0 * p.T * p.L), *routed(p, previous=previous).launches))


def routed(p: Point, *, previous: bool = False) -> Cost:
    """Return a call with a routing given, by the form that it takes."""
    return dense(p) if _takes_dense(p, previous=previous) else visiting(p, previous=previous)


def sorted_groups(p: Point) -> Cost:
    """Return one pass of shrink and expand per slot on tokens sorted by adapter, all of the largest rank.

    As in the kernels of vLLM, whose sorting serves all layers of a forward and is not counted.
    """
    R, one = max(p.rank_list), present(Point(L=p.L, k=1), p.T)
    rows = BYTES * one * R
    z = 4.0 * p.T * R
    padded = one * LEAST_TILE * math.ceil(p.T / one / LEAST_TILE)
    return Cost(
        tuple(
            Launch(moved, flop=2.0 * padded * max(R, LEAST_TILE) * d)
            for _ in range(p.k)
            for moved, d in (
                (BYTES * p.T * p.h + rows * p.h + z, p.h),
                (2 * BYTES * p.T * p.D + rows * p.D + z, p.D),
            )
        )
    )


def ragged_ratio(tokens: int, members: int, largest: int, *, previous: bool) -> float:
    """Return how much one member of a large rank among others of 8 costs, beside all of 8."""
    even = Point(T=tokens, L=members)
    return (
        routed(_Ragged(T=tokens, L=members, largest=largest), previous=previous).us
        / routed(even, previous=previous).us
    )


@dataclass(frozen=True, slots=True)
class _Ragged(Point):
    """A point whose last member has another rank than 8."""

    ranks: int | str = RAGGED
    largest: int = 64

    @property
    def rank_list(self) -> list[int]:
        return [8] * (self.L - 1) + [self.largest]


def _takes_dense(p: Point, *, previous: bool) -> bool:
    least = PREVIOUS_DENSE_TOKENS if previous else DENSE_TOKENS
    return least <= p.T and sum(p.rank_list) <= DENSE_ROWS


def _row(kernel: str, tokens: int) -> dict[str, Any]:
    rows = read_table()["default"][kernel]
    return next(row for row in rows if row["max_tokens"] is None or tokens <= row["max_tokens"])


def _tile(p: Point, row: dict[str, Any]) -> int:
    largest: int = max(p.rank_list)
    return min(row["rank"], max(LEAST_TILE, 1 << (largest - 1).bit_length()))


def _splits(p: Point, row: dict[str, Any]) -> int:
    tiles = math.ceil(p.T / row["tokens"]) * math.ceil(max(p.rank_list) / _tile(p, row))
    return min(SPLITS, max(1, row["programs"] // tiles))


def _read_rows(p: Point, row: dict[str, Any], *, narrow: bool = False, masked: bool = False) -> float:
    """Return the rows that a visit reads, in the mean over adapters."""
    tile = _tile(p, row)
    if masked:
        return sum(p.rank_list) / p.L
    return (
        sum(
            LEAST_TILE if narrow and rank <= LEAST_TILE else tile * math.ceil(rank / tile)
            for rank in p.rank_list
        )
        / p.L
    )


def _visits(p: Point, row: dict[str, Any], d: int, other: float, rows: float, wait_us: float) -> Launch:
    tiles = math.ceil(p.T / row["tokens"])
    of_tile = present(p, min(p.T, row["tokens"]))
    features = row["features"] if "features" in row else d // _splits(p, row)
    waves = tiles * d / features / (PROCESSORS * PROGRAMS_EACH)
    memory = other + BYTES * present(p, p.T) * rows * d
    computed = max(rows, LEAST_TILE)
    return Launch(
        memory,
        cache=other + BYTES * tiles * of_tile * rows * d,
        flop=2.0 * tiles * row["tokens"] * of_tile * computed * d,
        visits_us=of_tile * (wait_us + BYTES * rows * features / SM_BYTES_US) * max(1.0, waves),
    )


def main(arguments: list[str]) -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run kernel-costs", description=__doc__)
    parser.add_argument("--page", action="store_true", help="write the tables into docs/kernels.md")
    if parser.parse_args(arguments).page:
        PAGE.write_text(page_of(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        sys.stdout.write(section())


def page_of(page: str) -> str:
    """Return the page with the tables of the model."""
    return with_section(page, START, END, section())


def section() -> str:
    """Return the tables."""
    return "\n".join((*costs_table(), "", *ragged_table())) + "\n"


def costs_table() -> Iterator[str]:
    """Yield the table of costs by regime."""
    names = (
        "floor us",
        "MB",
        "GFLOP",
        "ours us",
        "launches",
        "with a gate",
        "before",
        "dense",
        "sorted groups",
    )
    yield "| point | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for p in SHOWN:
        least, ours, gate = floor(p), routed(p), gated(p, previous=False)
        before = routed(p, previous=True).us, gated(p, previous=True).us
        cells = (
            f"{least.us - LAUNCH_US:.1f}",
            f"{ours.megabytes:.1f}",
            f"{ours.gflop:.2f}",
            f"{ours.us:.0f}",
            f"{len(ours.launches)} / {len(gate.launches)}",
            f"{gate.us:.0f}",
            f"{before[0]:.0f} / {before[1]:.0f}",
            f"{dense(p).us:.0f}",
            f"{sorted_groups(p).us:.0f}",
        )
        rank = p.ranks if p.ranks == RAGGED else f"r {p.ranks}"
        yield f"| T {p.T}, L {p.L}, {rank} | " + " | ".join(cells) + " |"


def ragged_table() -> Iterator[str]:
    """Yield the table of what one member of a large rank costs."""
    yield "| one large among 8s | " + " | ".join(f"T {tokens}" for tokens in TOKENS) + " |"
    yield "|---" * (len(TOKENS) + 1) + "|"
    for members, largest in RAGGED_LAYOUTS:
        for previous, name in ((False, "ours"), (True, "before")):
            ratios = (ragged_ratio(tokens, members, largest, previous=previous) for tokens in TOKENS)
            cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
            yield f"| L {members}, one of {largest}, {name} | {cells} |"
