"""Shrink and expand as one matrix product over all adapters, whatever the tokens selected.

Each token's rows are picked out of the product and put back into zeros, rather than multiplied by a mask,
so that an Inf or NaN in an adapter's z stays away from the tokens that did not select it (0 * Inf is NaN).
Shapes are those of ``layout.py``, the row form of z is that of ``slots.py``.
"""

from __future__ import annotations

from torch import Tensor

from .operands import accumulation_dtype, multipliable
from .slots import Slots


def shrink_dense(v: Tensor, W: Tensor, slots: Slots) -> Tensor:
    """Return z in row form, in the accumulation dtype, of ``v [T, d]`` and ``W [N, d]``."""
    of_all = multipliable(v) @ multipliable(W).T
    if slots.layout.equal_ranks:
        z = of_all.view(v.shape[0], -1, slots.layout.max_rank).gather(1, slots.wide_selection).flatten()
    else:
        z = of_all[slots.row_tokens, slots.rows]
    return z.to(accumulation_dtype(v.dtype))


def expand_dense(z: Tensor, W: Tensor, slots: Slots, out: Tensor | None) -> Tensor:
    """Return ``sum_j z_j W_i`` [T, d] in the dtype of `W`, added into `out` where one is given."""
    weight = multipliable(W)
    T, N = slots.selection.shape[0], weight.shape[0]
    spread, z = weight.new_zeros(T, N), z.to(weight.dtype)
    # Accumulating, since a token may select an adapter twice.
    if slots.layout.equal_ranks:
        wide = slots.wide_selection
        spread.view(T, -1, wide.shape[2]).scatter_add_(1, wide, z.view(wide.shape))
    else:
        spread.index_put_((slots.row_tokens, slots.rows), z, accumulate=True)
    if out is not None and out.dtype == weight.dtype:
        return out.addmm_(spread, weight)
    result = spread @ weight
    return result.to(W.dtype) if out is None else out.add_(result)
