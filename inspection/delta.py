"""Norms and angles of deltas ``s B A``, in float64 and without forming one.

With the QR decomposition [B1 B2] = Q [R1 R2], and of A1, A2 likewise, each delta ``B A`` has the norms and
products of the small matrix R_B R_A^T. Traces of Gram matrices would square the numbers and lose half their
digits; this also measures the difference of two deltas that are almost the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ..schemas.difference import DeltaChange
from ..schemas.inventory import ModuleFactors
from .header import Header
from .scan import read_tensor

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Factors:
    """One module's factors: A ``[experts * rank, in]``, expert by expert, and B ``[out, rank * experts]``."""

    a: Matrix
    b: Matrix
    scaling: float
    experts: int = 1

    @classmethod
    def read(cls, file: BinaryIO, header: Header, module: ModuleFactors) -> Factors:
        """Return the factors of a module from an adapter's open weights."""
        a, b = read_tensor(file, header[module.a]), read_tensor(file, header[module.b])
        return cls(a, b, module.scaling, module.experts)

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

    def pairs(self, unit_a: float, unit_b: float, unit_s: float) -> Iterator[tuple[Matrix, Matrix]]:
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
    pairs = [list(each.pairs(unit_a, unit_b, unit_s)) for each in present]
    for parts in zip(*pairs, strict=True):
        cores = _cores(parts)
        one = cores[0] if first is not None else np.zeros_like(cores[0])
        other = cores[-1] if second is not None else np.zeros_like(cores[-1])
        difference = np.zeros_like(one) if same else other - one
        sums += [np.sum(one * one), np.sum(other * other), np.sum(difference**2), np.sum(one * other)]
    return Squares.of(sums, unit_a * unit_b * unit_s)


def _cores(pairs: tuple[tuple[Matrix, Matrix], ...]) -> list[Matrix]:
    """Return R_B R_A^T of each pair, in bases that all of them share."""
    widths = np.cumsum([a.shape[0] for a, _ in pairs])[:-1]
    of_a = np.linalg.qr(np.concatenate([a.T for a, _ in pairs], axis=1), mode="r")
    of_b = np.linalg.qr(np.concatenate([b for _, b in pairs], axis=1), mode="r")
    split = zip(np.split(of_b, widths, axis=1), np.split(of_a, widths, axis=1), strict=True)
    return [b @ a.T for b, a in split]


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
