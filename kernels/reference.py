"""The reference that every backend is judged by: in float64, to be checked by eye, never optimised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .gate_kinds import GATE_KINDS


def reference_routed_lora(
    x: Tensor,
    A: Tensor,
    Bt: Tensor,
    offsets: Sequence[int],
    scaling: Sequence[float],
    selection: Tensor,
    weights: Tensor,
) -> Tensor:
    """Return ``sum over slots j of w_j * s_i * (x A_i^T) Bt_i`` with ``i = selection_j``, float64 [..., D].

    Differentiable in `x`, `A`, `Bt` and `weights`. Shapes are those of ``layout.py``.
    """
    tokens = x.double().reshape(-1, x.shape[-1])
    A, Bt = A.double(), Bt.double()
    chosen = selection.reshape(-1, selection.shape[-1]).tolist()
    shares = weights.double().reshape(-1, selection.shape[-1])
    rows = []
    for t, adapters in enumerate(chosen):
        y = tokens.new_zeros(Bt.shape[1])
        for j, i in enumerate(adapters):
            start, end = offsets[i], offsets[i + 1]
            y = y + shares[t, j] * scaling[i] * (tokens[t] @ A[start:end].T @ Bt[start:end])
        rows.append(y)
    out = torch.stack(rows) if rows else tokens.new_zeros(0, Bt.shape[1])
    return out.reshape(*x.shape[:-1], Bt.shape[1])


def reference_gate_logits(x: Tensor, gate: Tensor, bias: Tensor | None, *, kind: str, eps: float) -> Tensor:
    """Return the logits that define a gate's kind, float64 [..., L]; arguments as for `gate_logits`."""
    z = GATE_KINDS[kind].define(gate.double(), x.double(), eps)
    return z if bias is None else z + bias.double()
