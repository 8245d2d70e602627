"""The points at which the kernels are measured: linears of Llama-3-8B, members, ranks, tokens, routings."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

DTYPES = ("fp32", "bf16")
TOKENS = (1, 16, 64, 128, 512, 4096)
# One member of 64 among 27 of 8: what padding all to the largest would make 6.4 times as large.
RAGGED = "ragged"


@dataclass(frozen=True, slots=True)
class Point:
    """One measured case. `ranks` is one rank for all, or `ragged`; routings are those of `selection_of`."""

    h: int = 4096
    D: int = 4096
    L: int = 28
    ranks: int | str = 8
    k: int = 2
    T: int = 1
    dtype: str = "fp32"
    routing: str = "uniform"

    @property
    def name(self) -> str:
        """Return what the row is called."""
        rank = self.ranks if self.ranks == RAGGED else f"r{self.ranks}"
        return f"{self.h}x{self.D}-L{self.L}-{rank}-k{self.k}-T{self.T}-{self.dtype}-{self.routing}"

    @property
    def rank_list(self) -> list[int]:
        """Return every member's rank."""
        if isinstance(self.ranks, str):
            return [8] * (self.L - 1) + [64]
        return [self.ranks] * self.L


def all_points() -> list[Point]:
    """Return the points, about sixty, small ones first within each group."""
    points = [Point(T=T, dtype=dtype) for T in TOKENS for dtype in DTYPES]
    points += [
        Point(ranks=ranks, T=T, dtype=dtype)
        for ranks, T, dtype in itertools.product((16, 64, RAGGED), (1, 16, 128, 512), DTYPES)
    ]
    points += [
        Point(L=L, T=T, dtype=dtype) for L, T, dtype in itertools.product((4, 128), (1, 16, 512), DTYPES)
    ]
    points += [Point(k=1, T=T, dtype=dtype) for T, dtype in itertools.product((1, 128), DTYPES)]
    points += [
        Point(T=512, routing=routing, dtype=dtype)
        for routing, dtype in itertools.product(("concentrated", "one"), DTYPES)
    ]
    linears = ((4096, 1024), (4096, 14336), (14336, 4096))
    points += [
        Point(h, D, T=T, dtype=dtype)
        for (h, D), (T, dtype) in itertools.product(linears, ((1, "bf16"), (128, "fp32")))
    ]
    return points
