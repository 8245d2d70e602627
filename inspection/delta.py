"""Norms and angles of deltas ``s B A``, in float64.

<B1 A1, B2 A2> is the sum of (B1^T B2) * (A1 A2^T), products as wide as the ranks, so no delta is formed.
Of a difference this would lose half of the digits; where the ranks are equal, its norm is therefore that of
(B2 - B1) A2 + B1 (A2 - A1), whose parts are as small as the change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ..schemas.difference import DeltaChange
from ..schemas.inventory import ModuleFactors
from .header import Header
from .scan import read_tensor

Matrix = npt.NDArray[np.float64]
# A and s B of one linear module.
Pair = tuple[Matrix, Matrix]


@dataclass(frozen=True, slots=True)
class Factors:
    """One module's factors: A ``[experts * rank, in]``, expert by expert, and B ``[out, rank * experts]``."""

    a: Matrix
    b: Matrix
    scaling: float
    experts: int = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Experts, output and input features: those of the delta."""
        return self.experts, self.b.shape[0], self.a.shape[1]

    @property
    def is_finite(self) -> bool:
        """Whether every number is one."""
        return bool(np.isfinite(self.a).all() and np.isfinite(self.b).all() and math.isfinite(self.scaling))

    def is_like(self, other: Factors) -> bool:
        """Return whether both are the same numbers, and so the same delta."""
        return (
            self.scaling == other.scaling
            and np.array_equal(self.a, other.a)
            and np.array_equal(self.b, other.b)
        )

    def pairs(self, unit_a: float, unit_b: float, unit_s: float) -> Iterator[Pair]:
        """Yield A and s B of each expert in these units."""
        rank = self.a.shape[0] // self.experts
        columns = self.b.reshape(self.b.shape[0], rank, self.experts)
        for expert in range(self.experts):
            a = self.a[expert * rank : (expert + 1) * rank]
            yield a / unit_a, columns[:, :, expert] / unit_b * (self.scaling / unit_s)


@dataclass(frozen=True, slots=True)
class Squares:
    """Sums of squares that norms and angles follow from: of both deltas, of their difference, their product.

    They are in ``unit``, the square of a number that keeps them in range whatever the magnitudes.
    """

    first: float
    second: float
    difference: float
    product: float
    unit: float = 1.0

    @classmethod
    def of(cls, sums: Matrix, unit: float) -> Squares:
        """Return the squares from a vector of the four in their order."""
        first, second, difference, product = sums.tolist()
        return cls(first, second, difference, product, unit)

    def change(self) -> DeltaChange:
        """Return the norms, the relative change and the cosine."""
        lengths = math.sqrt(self.first) * math.sqrt(self.second)
        return DeltaChange(
            first_norm=self._norm(self.first),
            second_norm=self._norm(self.second),
            difference_norm=self._norm(self.difference),
            relative=_finite(math.sqrt(self.difference) / math.sqrt(self.first)) if self.first else None,
            cosine=max(-1.0, min(1.0, self.product / lengths)) if lengths else None,
        )

    @classmethod
    def total(cls, parts: Iterable[Squares]) -> Squares:
        """Return the sums over several modules."""
        found = [part for part in parts if part.unit > 0 and math.isfinite(part.unit)]
        unit = max((part.unit for part in found), default=1.0)
        sums = np.zeros(4)
        for part in found:
            own = np.array([part.first, part.second, part.difference, part.product])
            sums += own * (part.unit / unit) ** 2
        return cls.of(sums, unit)

    def _norm(self, square: float) -> float | None:
        return _finite(math.sqrt(square) * self.unit)


def read_factors(file: BinaryIO, header: Header, module: ModuleFactors | None) -> Factors | None:
    """Return the factors of a module from an adapter's open weights; None for a module that it lacks."""
    if module is None:
        return None
    a, b = read_tensor(file, header[module.a]), read_tensor(file, header[module.b])
    return Factors(a, b, module.scaling, module.experts)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def measure(first: Factors | None, second: Factors | None) -> Squares | None:
    """Return the squares of two deltas, of which one may be absent.

    None if they have other shapes, or numbers that are not finite.
    """
    present = [each for each in (first, second) if each is not None]
    if len({each.shape for each in present}) != 1 or not all(each.is_finite for each in present):
        return None
    unit_a = max(_peak(each.a) for each in present)
    unit_b = max(_peak(each.b) for each in present)
    unit_s = max(abs(each.scaling) for each in present)
    if 0.0 in (unit_a, unit_b, unit_s):
        return Squares(0.0, 0.0, 0.0, 0.0)
    same = first is not None and second is not None and first.is_like(second)
    sums = np.zeros(4)
    for one, other in zip_longest(*(_pairs(each, unit_a, unit_b, unit_s) for each in (first, second))):
        sums += _compare(one, other)
    if same:
        sums[2] = 0.0
    return Squares.of(sums, unit_a * unit_b * unit_s)


def _pairs(factors: Factors | None, *units: float) -> Iterator[Pair]:
    yield from () if factors is None else factors.pairs(*units)


def _compare(one: Pair | None, other: Pair | None) -> Matrix:
    """Return the squares of two deltas ``B A``, of their difference, and their product."""
    if one is None or other is None:
        square = sum(_product(each, each) for each in (one, other) if each is not None)
        return np.array([square if one else 0.0, square if other else 0.0, square, 0.0])
    first, second, product = _product(one, one), _product(other, other), _product(one, other)
    if one[0].shape == other[0].shape:
        of_b, of_a = (other[0], other[1] - one[1]), (other[0] - one[0], one[1])
        difference = _product(of_b, of_b) + _product(of_a, of_a) + 2 * _product(of_b, of_a)
    else:
        difference = first + second - 2 * product
    return np.array([first, second, max(difference, 0.0), product])


def _product(one: Pair, other: Pair) -> float:
    """Return the inner product of two deltas from their factors A and B."""
    (a, b), (other_a, other_b) = one, other
    if max(a.shape[0], other_a.shape[0]) > min(b.shape[0], a.shape[1]):
        # Of so high a rank the deltas are smaller than their factors.
        return float(np.sum((b @ a) * (other_b @ other_a)))
    return float(np.sum((b.T @ other_b) * (a @ other_a.T)))


def _peak(matrix: Matrix) -> float:
    return float(np.abs(matrix).max())


def measure_rows(first: Matrix, second: Matrix) -> Squares | None:
    """Return the squares of two matrices of one shape; None if a number is not finite."""
    unit = max(_peak(first), _peak(second))
    if not math.isfinite(unit):
        return None
    one, other = (matrix / (unit or 1.0) for matrix in (first, second))
    sums = [np.sum(one * one), np.sum(other * other), np.sum((other - one) ** 2), np.sum(one * other)]
    return Squares.of(np.array(sums), unit or 1.0)
