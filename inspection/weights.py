"""The numbers of an adapter beside its tensors: the subject of the rules about weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from ..schemas.inventory import Dtype, Inventory, ModuleFactors
from .rules.rule import MAX_FINDINGS_PER_RULE
from .scan import Scan, read_tensor
from .tensors import Tensors

LIMITS = {
    Dtype.F64: float(np.finfo(np.float64).max),
    Dtype.F32: float(np.finfo(np.float32).max),
    Dtype.F16: float(np.finfo(np.float16).max),
    Dtype.BF16: float.fromhex("0x1.fep127"),
}
_ROWS = 64


@dataclass(frozen=True, slots=True)
class Overflow:
    """A module whose scaled product passes a limit; no ``dtype`` where only float16 is too small."""

    path: str
    tensor: str
    largest: float
    limit: float
    dtype: Dtype | None


@dataclass(frozen=True, slots=True)
class Weights:
    """The result of the scan, the tensors it belongs to, and the products that overflow."""

    tensors: Tensors
    scan: Scan
    overflows: tuple[Overflow, ...]


def find_overflows(
    file: BinaryIO, tensors: Tensors, inventory: Inventory, scan: Scan
) -> tuple[Overflow, ...]:
    """Return the modules whose scaled product B A does not fit its dtype, or float16.

    The product is bounded by rank * max|A| * max|B| * scaling, then by the sum over the rank of the
    largest magnitudes; only where both bounds are too large is it multiplied out, in blocks of rows,
    which needs one module's factors in memory. The search ends after twenty modules that overflow.
    """
    found: list[Overflow] = []
    suspects = [module for module in inventory.modules if bound_product(module, scan) > LIMITS[Dtype.F16]]
    for module in suspects:
        if len(found) == MAX_FINDINGS_PER_RULE:
            break
        largest = _largest_product(file, module, tensors)
        own = min((module.a_dtype, module.b_dtype), key=lambda dtype: LIMITS[dtype])
        if largest > LIMITS[own]:
            found.append(Overflow(module.path, module.b, largest, LIMITS[own], own))
        elif largest > LIMITS[Dtype.F16]:
            found.append(Overflow(module.path, module.b, largest, LIMITS[Dtype.F16], None))
    return tuple(found)


def bound_product(module: ModuleFactors, scan: Scan) -> float:
    """Return a bound on every entry of the scaled product; zero where a factor is not finite."""
    a, b = scan.magnitudes[module.a], scan.magnitudes[module.b]
    if not a.is_finite or not b.is_finite:
        return 0.0
    return module.rank * a.largest * b.largest * abs(module.scaling)


def _largest_product(file: BinaryIO, module: ModuleFactors, tensors: Tensors) -> float:
    """Return the largest entry of the scaled product, or a bound of it that fits float16."""
    stacked_a = read_tensor(file, tensors.header[module.a])
    stacked_b = read_tensor(file, tensors.header[module.b])
    largest, scaling = 0.0, abs(module.scaling)
    with np.errstate(over="ignore", invalid="ignore"):
        for expert in range(module.experts):
            a = stacked_a[expert * module.rank : (expert + 1) * module.rank]
            b = stacked_b[:, expert :: module.experts]
            bound = float((np.abs(b).max(axis=0) * np.abs(a).max(axis=1)).sum()) * scaling
            if bound <= LIMITS[Dtype.F16]:
                largest = max(largest, bound)
                continue
            for begin in range(0, b.shape[0], _ROWS):
                block = np.abs(b[begin : begin + _ROWS] @ a * scaling)
                # An entry whose terms overflow even float64 is infinite, or NaN if they cancel.
                largest = max(largest, float(np.where(np.isnan(block), np.inf, block).max()))
    return largest
