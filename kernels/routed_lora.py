"""Routed LoRA: the dispatcher that inference, training and verification share.

`routed_lora` returns the adapters' contribution and is differentiable; `routed_lora_` adds it into the
base output and is for inference, and `gated_lora_` moreover takes the gate instead of a routing, so that a
GPU decodes with two launches per linear. All take their routing as they find it: a linear that shares
another's decision passes the `Routing` that `gated_lora_` returned there. Shapes are those of ``layout.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .layout import layout_of
from .operands import check_factors, check_gate_serves, check_operands, check_output
from .operators import (
    add_operator,
    differentiable_forward,
    forward_operator,
    gated_add_operator,
    infer,
    infer_gated,
    is_traced,
    needs_gradient,
)
from .routing import Gate, Routing, check_gate, check_top_k


def routed_lora(
    x: Tensor,
    A: Tensor,
    Bt: Tensor,
    offsets: Sequence[int],
    scaling: Sequence[float],
    selection: Tensor,
    weights: Tensor,
) -> Tensor:
    """Return ``sum over slots j of w_j * s_i * (x A_i^T) Bt_i`` with ``i = selection_j``, [..., D].

    Sums in fp32 (float64 for float64) and rounds to the dtype of `x`. Gradients flow to `x` and `weights`,
    and to `A` and `Bt` where they require them. An adapter selected twice by one token counts twice; one
    of rank 0 adds nothing. The factors must be finite: a NaN in an adapter's weights may reach tokens that
    did not select it.

    Args:
        x: [..., h]; fp32, bf16, fp16 or float64.
        A: [N, h], the dtype of `x`.
        Bt: [N, D], the dtype of `x`.
        offsets: L + 1 row offsets into A and Bt, the first 0, the last N.
        scaling: L factors.
        selection: int64 [..., k], each 0 to L - 1.
        weights: float32 [..., k].

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together; on a CPU also if `selection` names an
            adapter that does not exist. The Triton kernels let such a slot add nothing to the output; torch's
            operations on a GPU, which every backward has one of, may stop the device there.
    """
    out: Tensor
    if is_traced(x):
        check_operands(x, A, Bt, offsets, scaling, selection, weights)
        keep_z = needs_gradient(x, A, Bt, weights)
        out, _ = forward_operator(
            flat(x), A, Bt, tuple(offsets), tuple(scaling), flat(selection), flat(weights), keep_z
        )
    else:
        layout = layout_of(offsets, scaling)
        check_operands(x, A, Bt, offsets, scaling, selection, weights)
        if needs_gradient(x, A, Bt, weights):
            out, _ = differentiable_forward(
                flat(x), A, Bt, layout.offsets, layout.scaling, flat(selection), flat(weights), True
            )
        else:
            out = infer(flat(x), A, Bt, layout, Routing(flat(selection), flat(weights)))
    return out if x.ndim == 2 else out.view(*x.shape[:-1], Bt.shape[1])


def routed_lora_(
    out: Tensor,
    x: Tensor,
    A: Tensor,
    Bt: Tensor,
    offsets: Sequence[int],
    scaling: Sequence[float],
    selection: Tensor,
    weights: Tensor,
) -> Tensor:
    """Return `out` [..., D] after adding to it, in place, what `routed_lora` would return.

    For inference: torch gives no gradient through an operator that writes into its input, it silently
    drops it, so that this refuses instead.

    Raises:
        ValueError: as `routed_lora`, and if `out` is not shaped, typed or placed like the result.
        RuntimeError: if gradients are enabled and an operand requires them.
    """
    layout = None if is_traced(x) else layout_of(offsets, scaling)
    check_operands(x, A, Bt, offsets, scaling, selection, weights)
    check_output(out, x, Bt)
    refuse_gradients("routed_lora_", out, x, A, Bt, weights)
    if layout is None:
        add_operator(
            rows_of(out), flat(x), A, Bt, tuple(offsets), tuple(scaling), flat(selection), flat(weights)
        )
    else:
        infer(flat(x), A, Bt, layout, Routing(flat(selection), flat(weights)), rows_of(out))
    return out


def gated_lora_(
    out: Tensor,
    x: Tensor,
    A: Tensor,
    Bt: Tensor,
    offsets: Sequence[int],
    scaling: Sequence[float],
    gate: Gate,
) -> Routing:
    """Return the gate's routing [..., k] of `x`, after adding what it routes to `out` [..., D] in place.

    The same as `gate.route(x)` and `routed_lora_`, in fewer launches. For inference.

    Raises:
        ValueError: as `routed_lora_`, `gate_logits` and `select_top_k`.
        RuntimeError: if gradients are enabled and an operand requires them.
    """
    layout = None if is_traced(x) else layout_of(offsets, scaling)
    check_factors(x, A, Bt, offsets)
    check_gate(x, gate.weight, gate.bias, gate.kind)
    check_gate_serves(gate.weight, gate.bias, x, adapters=len(scaling))
    check_top_k((len(scaling),), gate.top_k, gate.temperature)
    check_output(out, x, Bt)
    if torch.is_grad_enabled():
        of_gate = (gate.weight,) if gate.bias is None else (gate.weight, gate.bias)
        refuse_gradients("gated_lora_", out, x, A, Bt, *of_gate)
    if layout is None:
        selection, weights = gated_add_operator(
            rows_of(out), flat(x), A, Bt, tuple(offsets), tuple(scaling), *gate.fields
        )
        routing = Routing(selection, weights)
    else:
        routing = infer_gated(flat(x), A, Bt, layout, gate, rows_of(out))
    if x.ndim == 2:
        return routing
    shape = (*x.shape[:-1], gate.top_k)
    return Routing(routing.selection.view(shape), routing.weights.view(shape))


def refuse_gradients(name: str, *tensors: Tensor) -> None:
    """Refuse a call that would lose a gradient.

    Raises:
        RuntimeError: if gradients are enabled and one of the tensors requires them.
    """
    if needs_gradient(*tensors):
        raise RuntimeError(
            f"`{name}` writes into its output and passes no gradient, but gradients are enabled and an "
            "operand requires them; use `routed_lora`, or call under `torch.no_grad()`"
        )


def flat(tensor: Tensor) -> Tensor:
    """Return [..., n] as [T, n]."""
    return tensor if tensor.ndim == 2 else tensor.reshape(-1, tensor.shape[-1])


def rows_of(out: Tensor) -> Tensor:
    """Return `out` [..., D] as [T, D], a view of it.

    Raises:
        ValueError: if its leading dimensions are strided so that no view has them as one.
    """
    if out.ndim == 2:
        return out
    try:
        return out.view(-1, out.shape[-1])
    except RuntimeError as error:
        raise ValueError(
            f"`out` {list(out.shape)} has strides {list(out.stride())}, expected leading dimensions that "
            "flatten without a copy; pass a contiguous `out`"
        ) from error
