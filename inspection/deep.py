"""Measurements of the numbers: how much of the rank is used, and how alike two adapters are.

No matrix of the size of a weight is formed. With thin QR decompositions B = Q_B R_B and
A^T = Q_A R_A, the singular values of B A are those of the small matrix R_B R_A^T.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..files.reading import open_regular
from ..schemas.inventory import Inventory
from .delta import Squares, measure, read_factors
from .header import Header
from .scan import read_tensor

# The share of the squared singular values that the effective rank must hold.
ENERGY = 0.99
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EffectiveRank:
    """The number of singular values of a module's delta that hold 99 % of its squared norm."""

    path: str
    rank: int
    effective: int


@dataclass(frozen=True, slots=True)
class DeepLook:
    """The effective ranks of all modules of an adapter whose numbers are finite."""

    ranks: tuple[EffectiveRank, ...]


def measure_ranks(weights: Path, header: Header, inventory: Inventory) -> DeepLook:
    """Return the effective rank of every module; one module's factors are in memory at a time."""
    with open_regular(weights) as file:
        return DeepLook(
            tuple(
                EffectiveRank(
                    module.path,
                    module.rank,
                    effective_rank(read_tensor(file, header[module.a]), read_tensor(file, header[module.b])),
                )
                for module in inventory.modules
            )
        )


def effective_rank(a: Matrix, b: Matrix) -> int:
    """Return how many singular values of ``b @ a`` hold 99 % of its squared norm; 0 if it is zero."""
    # Scaling first keeps the squares in range whatever the magnitudes.
    peaks = float(np.abs(a).max()), float(np.abs(b).max())
    if 0.0 in peaks:
        return 0
    core = _triangle(b / peaks[1]) @ _triangle(a.T / peaks[0]).T
    energy = np.cumsum(np.linalg.svd(core, compute_uv=False) ** 2)
    return int(np.searchsorted(energy, ENERGY * energy[-1]) + 1) if energy[-1] > 0 else 0


def measure_cosine(
    one: tuple[Path, Header, Inventory], other: tuple[Path, Header, Inventory]
) -> float | None:
    """Return the cosine between the whole deltas of two adapters; None where one of them is zero.

    A module of another shape in each counts for both norms, and not for the product.
    """
    found: list[Squares] = []
    with open_regular(one[0]) as first, open_regular(other[0]) as second:
        for path in sorted({*one[2].by_path, *other[2].by_path}):
            left = read_factors(first, one[1], one[2].by_path.get(path))
            right = read_factors(second, other[1], other[2].by_path.get(path))
            together = measure(left, right)
            alone = (measure(left, None), measure(None, right)) if together is None else (together,)
            found += [squares for squares in alone if squares is not None]
    return Squares.total(found).change().cosine


def _triangle(matrix: Matrix) -> Matrix:
    """Return R of the thin QR decomposition."""
    return np.asarray(np.linalg.qr(matrix).R, dtype=np.float64)
