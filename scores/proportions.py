"""Intervals of proportions, and the separation of two sets of scores (AUROC); needs no scipy."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

# Of the normal distribution, for 95 %.
_Z = 1.959963984540054


def wilson_interval(count: int, of: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion (Wilson, 1927); 0 to 1 of nothing."""
    if of == 0:
        return 0.0, 1.0
    share, square = count / of, _Z**2 / of
    middle = (share + square / 2) / (1 + square)
    spread = _Z * math.sqrt(share * (1 - share) / of + square / (4 * of)) / (1 + square)
    return max(0.0, middle - spread), min(1.0, middle + spread)


def area_under_curve(own: Sequence[float], foreign: Sequence[float]) -> float:
    """Return the chance that an own score is above a foreign one, ties counted as half (AUROC)."""
    rising = sorted(foreign)
    wins = sum(bisect_left(rising, score) + bisect_right(rising, score) for score in own)
    return wins / (2 * len(own) * len(foreign))
