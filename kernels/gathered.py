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

from .layout import Layout
from .operands import accumulation_dtype
from .routing import Routing
from .slots import Slots, check_range

# The operators' `mode`, and the map from rows to tokens, which they make of the tokens' starts.
SUM = 0
NO_MAP = torch.empty(0, dtype=torch.int64, device="cpu")


def routed_views(
    x: Tensor, A: Tensor, Bt: Tensor, layout: Layout, routing: Routing, out: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Return the routed output [T, D] in the dtype of `x`, and z of each slot, [R_i].

    The output is added into `out` where one is given. Products and sum are in the accumulation dtype; weight
    and scaling are multiplied in double.

    Raises:
        ValueError: if a slot names an adapter that does not exist.
    """
    dtype, z = accumulation_dtype(x.dtype), []
    widen = x.dtype != dtype
    total = x.new_zeros(x.shape[0], Bt.shape[1], dtype=dtype) if out is None or widen else out
    tokens = x.to(dtype) if widen else x
    choices = zip(routing.selection.tolist(), routing.weights.tolist(), strict=True)
    for token, (adapters, shares) in enumerate(choices):
        check_range(min(adapters), max(adapters), layout.adapters)
        features, result = tokens[token], total[token]
        for adapter, share in zip(adapters, shares, strict=True):
            rows = slice(layout.offsets[adapter], layout.offsets[adapter + 1])
            down, up = A[rows], Bt[rows]
            if widen:
                down, up = down.to(dtype), up.to(dtype)
            z.append(torch.mv(down, features))
            result.addmv_(up.T, z[-1], alpha=share * layout.scaling[adapter])
    if widen:
        total = total.to(x.dtype) if out is None else out.add_(total)
    return total, z


def shrink_sampled(v: Tensor, W: Tensor, slots: Slots) -> Tensor:
    """Return z in row form, in the accumulation dtype, of ``v [T, d]`` and ``W [N, d]``."""
    # What autograd itself calls for the weights of `embedding_bag`; torch gives it no public name. It
    # checks no index.
    slots.check()
    z: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        v, W, slots.rows, slots.token_starts, NO_MAP, SUM
    )
    return z.to(accumulation_dtype(v.dtype))


def expand_bag(z: Tensor, W: Tensor, slots: Slots, out: Tensor | None) -> Tensor:
    """Return ``sum_j z_j W_i`` [T, d] in the dtype of `W`, added into `out` where one is given."""
    result: Tensor = torch.embedding_bag(
        W, slots.rows, slots.token_starts, mode=SUM, per_sample_weights=z.to(W.dtype)
    )[0]
    return result if out is None else out.add_(result)
