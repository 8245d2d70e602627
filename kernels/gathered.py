"""Shrink and expand for which each token reads its own adapters' rows, with nothing sorted.

`routed_views` takes one slot at a time, as views of the storage, from input to output: the form of a single
decoded token, where every tensor operation counts. `shrink_views` and `expand_views` are its halves, for a
handful of tokens and for training, which needs z. `expand_bag` is `torch.nn.functional.embedding_bag`: a
weighted sum of rows of W per token, in one pass, summed in fp32 and stored once. For the CPU; shapes are
those of ``layout.py``, the block form of z is that of ``slots.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from .operands import accumulation_dtype, multipliable
from .slots import Slots


def routed_views(
    x: Tensor, A: Tensor, Bt: Tensor, slots: Slots, out: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Return the routed output [T, D] in the dtype of `x`, and z of each slot, [1, R_i].

    The output is added into `out` where one is given. Products and sum are in the accumulation dtype; weight
    and scaling are multiplied in double.
    """
    dtype = accumulation_dtype(x.dtype)
    in_place = out is not None and out.dtype == dtype
    total = out if out is not None and in_place else x.new_zeros(x.shape[0], Bt.shape[1], dtype=dtype)
    layout, z = slots.layout, []
    per_token = zip(slots.members, slots.weights.tolist(), strict=True)
    for t, (adapters, shares) in enumerate(per_token):
        token, row = x[t : t + 1].to(dtype), total[t : t + 1]
        for i, share in zip(adapters, shares, strict=True):
            rows = slice(layout.offsets[i], layout.offsets[i + 1])
            z.append(token @ A[rows].to(dtype).T)
            row.addmm_(z[-1], Bt[rows].to(dtype), alpha=share * layout.scaling[i])
    if out is None:
        return total.to(x.dtype), z
    return out if in_place else out.add_(total), z


def shrink_views(v: Tensor, W: Tensor, slots: Slots) -> Tensor:
    """Return z in block form, [S, g] in the accumulation dtype, of ``v [T, d]`` and ``W [N, d]``."""
    v, offsets = multipliable(v), slots.layout.offsets
    parts = [
        v[t : t + 1] @ multipliable(W[offsets[i] : offsets[i + 1]]).T
        for t, adapters in enumerate(slots.members)
        for i in adapters
    ]
    return torch.cat(parts, dim=1).view(-1, slots.layout.block_rank).to(accumulation_dtype(v.dtype))


def expand_views(z: Tensor, W: Tensor, slots: Slots, out: Tensor | None) -> Tensor:
    """Return ``sum_j z_j W_i`` [T, d] in the dtype of `W`, added into `out` where one is given.

    Products and sum are in the accumulation dtype.
    """
    total, values, offsets = (
        z.new_zeros(slots.selection.shape[0], W.shape[1]),
        z.flatten(),
        slots.layout.offsets,
    )
    start = 0
    for t, adapters in enumerate(slots.members):
        row = total[t : t + 1]
        for i in adapters:
            end = start + slots.layout.ranks[i]
            row.addmm_(values[start:end].unsqueeze(0), W[offsets[i] : offsets[i + 1]].to(z.dtype))
            start = end
    return total.to(W.dtype) if out is None else out.add_(total)


def expand_bag(z: Tensor, W: Tensor, slots: Slots, out: Tensor | None) -> Tensor:
    """Return ``sum_j z_j W_i`` [T, d] in the dtype of `W`, added into `out` where one is given."""
    T, k = slots.selection.shape
    g = slots.layout.block_rank
    rows = (slots.blocks * g).unsqueeze(-1) + torch.arange(g, device=z.device)
    shares = z.to(W.dtype)
    if slots.layout.equal_ranks:
        result = embedding_bag(rows.view(T, k * g), W, mode="sum", per_sample_weights=shares.view(T, k * g))
    else:
        starts = slots.first_blocks[::k] * g
        result = embedding_bag(rows.flatten(), W, starts, mode="sum", per_sample_weights=shares.flatten())
    return result if out is None else out.add_(result)
