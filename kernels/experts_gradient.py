"""Gradients of the experts themselves, for the rare training run that does not freeze them.

A loop over the adapters present, each on the tokens that chose it: a NaN in one token's gradient must not
reach the adapters it did not choose, and a masked product would carry it there (0 * NaN is NaN). The
groups' sizes are read on the host, so this cannot run inside a CUDA graph. Shapes are those of
``layout.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layout import Layout


def slot_outer_products(slots: Tensor, tokens: Tensor, layout: Layout, selection: Tensor) -> Tensor:
    """Return [N, d]: per adapter ``sum over its (t, j) of slots[t, j]^T tokens[t]``.

    With ``slots = w s u`` and ``tokens = x`` this is dA, with ``slots = w s z`` and ``tokens = dO`` it is
    dBt.

    Args:
        slots: [T, k, max R], accumulation dtype.
        tokens: [T, d]; its dtype is the result's.
        layout: where the adapters lie.
        selection: int64 [T, k].
    """
    result = tokens.new_zeros(layout.rows, tokens.shape[1])
    for adapter in torch.unique(selection).tolist():
        start, rank = layout.offsets[adapter], layout.ranks[adapter]
        t, j = torch.nonzero(selection == adapter, as_tuple=True)
        factors = slots[t, j, :rank].to(tokens.dtype)
        torch.mm(factors.T, tokens[t], out=result[start : start + rank])
    return result
