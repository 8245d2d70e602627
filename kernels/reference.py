"""The float64 reference that every backend is judged by, and how far each dtype may be from it.

The reference is to be checked by eye and never optimised. Errors are ``max|e| / max|reference|`` over one
tensor, and the reference reads the very operands that the kernel reads, so that the arithmetic is judged and
not the cast of the factors. Beside each tolerance is the largest error measured over the test suite. Tests
and the verifier read one table. Shapes are those of ``layout.py``.
"""

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


TOLERANCES: dict[torch.dtype, float] = {
    # Measured 7e-7 on the CPU, 9e-7 in Triton's interpreter; 4096 features.
    torch.float32: 1e-5,
    # Measured 6e-3 on the CPU: z and its weighted copy are each rounded to 8 bits. 9e-3 in the interpreter,
    # whose stores truncate.
    torch.bfloat16: 2e-2,
    # Measured 4e-4 on the CPU, 5e-4 in the interpreter.
    torch.float16: 2e-3,
    # Measured 6e-16.
    torch.float64: 1e-12,
}


def gradient_tolerance(dtype: torch.dtype, grad: Tensor) -> float:
    """Return the bound of a gradient of a call in `dtype`.

    Twice the output's, since two rounded products meet in it; the dtype of the gradient itself where that is
    coarser (fp32 weights in a float64 call).
    """
    return 2 * max(TOLERANCES[dtype], TOLERANCES[grad.dtype])


def relative_error(found: Tensor, reference: Tensor) -> float:
    """Return ``max|found - reference| / max|reference|``; inf when `found` is not finite where it should be.

    A reference that is zero everywhere asks for exact zeros: the error is then 0.0 or inf.
    """
    if not reference.numel():
        return 0.0
    difference = (found.double() - reference.double()).abs().max().item()
    scale = reference.double().abs().max().item()
    if difference != difference:
        return float("inf")
    if scale == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return float(difference / scale)
