"""Shrink and expand for which each token reads its own adapters' rows, with nothing sorted.

`routed_views` takes one slot at a time, as views of the storage, from input to output: the form of a single
decoded token, where every tensor operation counts. `shrink_views` and `expand_views` are its halves, for a
handful of tokens and for training, which needs z. `expand_bag` is `torch.nn.functional.embedding_bag`: a
weighted sum of rows of W per token, in one pass, summed in fp32 and stored once. The CPU alone takes these;
the selection is read on the host. Shapes are those of ``layout.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from .layout import Layout
from .operands import accumulation_dtype, multipliable
from .routing import Routing
from .slots import slot_rows


def routed_views(
    x: Tensor, A: Tensor, Bt: Tensor, layout: Layout, routing: Routing, out: Tensor | None
) -> Tensor:
    """Return the routed output [T, D] in the dtype of `x`, added into `out` where one is given.

    Products and sum are in the accumulation dtype; weight and scaling are multiplied in double.
    """
    dtype = accumulation_dtype(x.dtype)
    in_place = out is not None and out.dtype == dtype
    total = out if out is not None and in_place else x.new_zeros(x.shape[0], Bt.shape[1], dtype=dtype)
    per_token = zip(routing.selection.tolist(), routing.weights.tolist(), strict=True)
    for t, (adapters, shares) in enumerate(per_token):
        token, row = x[t : t + 1].to(dtype), total[t : t + 1]
        for i, share in zip(adapters, shares, strict=True):
            rows = slice(layout.offsets[i], layout.offsets[i + 1])
            row.addmm_(token @ A[rows].to(dtype).T, Bt[rows].to(dtype), alpha=share * layout.scaling[i])
    if out is None:
        return total.to(x.dtype)
    return out if in_place else out.add_(total)


def shrink_views(v: Tensor, W: Tensor, layout: Layout, selection: Tensor) -> Tensor:
    """Return z [T, k, R] of ``v [T, d]`` and ``W [N, d]``, in the accumulation dtype."""
    z = v.new_zeros(*selection.shape, layout.max_rank, dtype=accumulation_dtype(v.dtype))
    v = multipliable(v)
    for t, adapters in enumerate(selection.tolist()):
        token = v[t : t + 1]
        for j, i in enumerate(adapters):
            rows = multipliable(W[layout.offsets[i] : layout.offsets[i + 1]])
            z[t, j, : layout.ranks[i]] = (token @ rows.T)[0]
    return z


def expand_views(z: Tensor, W: Tensor, layout: Layout, selection: Tensor, out: Tensor | None) -> Tensor:
    """Return ``sum_j z_j W_i`` [T, d] in the dtype of `W`, added into `out` where one is given.

    Products and sum are in the accumulation dtype.
    """
    total = z.new_zeros(selection.shape[0], W.shape[1])
    for t, adapters in enumerate(selection.tolist()):
        row = total[t : t + 1]
        for j, i in enumerate(adapters):
            rows = W[layout.offsets[i] : layout.offsets[i + 1]].to(z.dtype)
            row.addmm_(z[t, j : j + 1, : layout.ranks[i]], rows)
    return total.to(W.dtype) if out is None else out.add_(total)


def expand_bag(z: Tensor, W: Tensor, layout: Layout, selection: Tensor, out: Tensor | None) -> Tensor:
    """Return ``sum_j z_j W_i`` [T, d] in the dtype of `W`, added into `out` where one is given."""
    slots = slot_rows(layout, selection)
    rows, shares, starts = slots.rows, z.to(W.dtype).flatten(1), None
    if slots.beyond is not None:
        real = ~slots.beyond
        starts = torch.cat([real.new_zeros(1, dtype=torch.int64), real.sum(1).cumsum(0)[:-1]])
        rows, shares = rows[real], shares[real]
    result = embedding_bag(rows, W, starts, mode="sum", per_sample_weights=shares)
    return result if out is None else out.add_(result)
