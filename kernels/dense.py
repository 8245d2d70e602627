"""Shrink and expand as one matrix product over all adapters, whatever the tokens selected.

Each token's slots are picked out of the product and put back into zeros, rather than multiplied by a mask,
so that an Inf or NaN in an adapter's z stays away from the tokens that did not select it (0 * Inf is NaN).
No step reads a value on the host, so this form also runs inside a CUDA graph. Shapes are those of
``layout.py``.
"""

from __future__ import annotations

from torch import Tensor

from .layout import Layout
from .operands import accumulation_dtype
from .slots import slot_rows


def shrink_dense(v: Tensor, W: Tensor, layout: Layout, selection: Tensor) -> Tensor:
    """Return z [T, k, R] of ``v [T, d]`` and ``W [N, d]``, in the accumulation dtype."""
    z = slot_rows(layout, selection).pick(v @ W.T)
    return z.to(accumulation_dtype(v.dtype)).view(*selection.shape, layout.max_rank)


def expand_dense(z: Tensor, W: Tensor, layout: Layout, selection: Tensor, out: Tensor | None) -> Tensor:
    """Return ``sum_j z_j W_i`` [T, d] in the dtype of `W`, added into `out` where one is given."""
    spread = slot_rows(layout, selection).put(z.to(W.dtype).flatten(1), layout.rows)
    return spread @ W if out is None else out.addmm_(spread, W)
