"""Shrink and expand for which each token reads its own adapters' rows, with nothing sorted.

`routed_views` takes one slot at a time, as views of the storage, from input to output: the form of a single
decoded token, where every tensor operation counts. The others are two operators of torch's embeddings, whose
"words" are the rows of the storage: `expand_bag` sums weighted rows of W per token, `shrink_sampled` is what
torch calls that sum's gradient for the weights, the product of each row with its token's features. Both read
each row where it lies, in one pass that is summed in fp32, and neither copies a feature. For the CPU; shapes
are those of ``layout.py``, the row form of z is that of ``slots.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from .operands import accumulation_dtype
from .slots import Slots

# `mode` and `offsets` of the operator: sums, and no offsets, since each row names its token.
SUM = 0
NO_OFFSETS = torch.empty(0, dtype=torch.int64, device="cpu")


def routed_views(
    x: Tensor, A: Tensor, Bt: Tensor, slots: Slots, out: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Return the routed output [T, D] in the dtype of `x`, and z of each slot, [R_i].

    The output is added into `out` where one is given. Products and sum are in the accumulation dtype; weight
    and scaling are multiplied in double.
    """
    layout, (T, k) = slots.layout, slots.selection.shape
    dtype = accumulation_dtype(x.dtype)
    in_place = out is not None and out.dtype == dtype
    total = out if out is not None and in_place else x.new_zeros(T, Bt.shape[1], dtype=dtype)
    shares, z = slots.weights.flatten().tolist(), []
    for slot, adapter in enumerate(slots.named):
        if slot % k == 0:
            token, row = x[slot // k].to(dtype), total[slot // k]
        start, end = layout.offsets[adapter], layout.offsets[adapter + 1]
        z.append(torch.mv(A[start:end].to(dtype), token))
        row.addmv_(Bt[start:end].to(dtype).T, z[-1], alpha=shares[slot] * layout.scaling[adapter])
    if out is None:
        return total.to(x.dtype), z
    return out if in_place else out.add_(total), z


def shrink_sampled(v: Tensor, W: Tensor, slots: Slots) -> Tensor:
    """Return z in row form, in the accumulation dtype, of ``v [T, d]`` and ``W [N, d]``."""
    # The operator checks no index.
    slots.check()
    z: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        v, W, slots.rows, NO_OFFSETS, slots.row_tokens, SUM
    )
    return z.to(accumulation_dtype(v.dtype))


def expand_bag(z: Tensor, W: Tensor, slots: Slots, out: Tensor | None) -> Tensor:
    """Return ``sum_j z_j W_i`` [T, d] in the dtype of `W`, added into `out` where one is given."""
    T, k = slots.selection.shape
    shares, rows = z.to(W.dtype), slots.rows
    if slots.layout.equal_ranks:
        result = embedding_bag(rows.view(T, -1), W, mode="sum", per_sample_weights=shares.view(T, -1))
    else:
        starts = slots.first_rows[::k].contiguous()
        result = embedding_bag(rows, W, starts, mode="sum", per_sample_weights=shares)
    return result if out is None else out.add_(result)
