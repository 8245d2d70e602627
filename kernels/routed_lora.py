"""Routed LoRA as two torch operators: the dispatcher that inference, training and verification share.

`routed_lora` returns the adapters' contribution and is differentiable; `routed_lora_` adds it into the
base output and is for inference. Both are ``torch.library`` custom operators of the namespace
``meteora``, so that ``torch.compile`` keeps them whole. The forward returns, next to the output, the z of
each slot, which with the selection is all that a backward pass over frozen adapters needs. Shapes are
those of ``layout.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .grouped import slot_outer_products
from .layout import layout_of
from .operands import accumulation_dtype, check_operands, check_output, check_selection
from .products import expand, forward, shrink
from .slots import slot_factors, slot_scaling


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
    of rank 0 adds nothing. The experts must be finite: a NaN in an adapter's weights may reach tokens that
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
        ValueError: if shapes, dtypes or devices do not fit together.
    """
    if not torch.compiler.is_compiling():
        layout_of(offsets, scaling)
    check_operands(x, A, Bt, offsets, scaling, selection, weights)
    slots = selection.shape[-1]
    x2, selection2, weights2 = (
        x.reshape(-1, x.shape[-1]),
        selection.reshape(-1, slots),
        weights.reshape(-1, slots),
    )
    keep_z = _needs_gradient(x, A, Bt, weights)
    out: Tensor
    if _is_traced(x):
        out, _ = _forward_op(x2, A, Bt, tuple(offsets), tuple(scaling), selection2, weights2, keep_z)
    elif keep_z:
        out, _ = _differentiable(x2, A, Bt, offsets, scaling, selection2, weights2, True)
    else:
        out, _ = _forward(x2, A, Bt, offsets, scaling, selection2, weights2, False)
    return out.view(*x.shape[:-1], Bt.shape[1])


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
    if not torch.compiler.is_compiling():
        layout_of(offsets, scaling)
    check_operands(x, A, Bt, offsets, scaling, selection, weights)
    check_output(out, x, Bt)
    if _needs_gradient(out, x, A, Bt, weights):
        raise RuntimeError(
            "`routed_lora_` writes into its output and passes no gradient, but gradients are enabled and an "
            "operand requires them; use `routed_lora`, or call under `torch.no_grad()`"
        )
    slots = selection.shape[-1]
    add = _add_op if _is_traced(x) else _add
    add(
        out.view(-1, Bt.shape[1]),
        x.reshape(-1, x.shape[-1]),
        A,
        Bt,
        tuple(offsets),
        tuple(scaling),
        selection.reshape(-1, slots),
        weights.reshape(-1, slots),
    )
    return out


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _is_traced(x: Tensor) -> bool:
    """Return whether a compiler or a fake tensor needs the operator; eager calls skip its 130 us."""
    return torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter)


def _forward(
    x: Tensor,
    A: Tensor,
    Bt: Tensor,
    offsets: Sequence[int],
    scaling: Sequence[float],
    selection: Tensor,
    weights: Tensor,
    keep_z: bool,
) -> tuple[Tensor, Tensor]:
    layout = layout_of(offsets, scaling)
    if selection.device.type == "cpu":
        check_selection(selection, layout.adapters)
    with _without_autocast(x):
        if not keep_z:
            return forward(x, A, Bt, layout, selection, weights), x.new_empty(
                0, dtype=accumulation_dtype(x.dtype)
            )
        z = shrink(x, A, layout, selection)
        return expand(z, weights, Bt, layout, selection), z


_forward_op = torch.library.custom_op("meteora::routed_lora", _forward, mutates_args=())


@_forward_op.register_fake
def _(
    x: Tensor,
    A: Tensor,
    Bt: Tensor,
    offsets: Sequence[int],
    scaling: Sequence[float],
    selection: Tensor,
    weights: Tensor,
    keep_z: bool,
) -> tuple[Tensor, Tensor]:
    z_shape = (*selection.shape, layout_of(offsets, scaling).max_rank) if keep_z else (0,)
    out = x.new_empty(x.shape[0], Bt.shape[1])
    return out, x.new_empty(z_shape, dtype=accumulation_dtype(x.dtype))


def _add(
    out: Tensor,
    x: Tensor,
    A: Tensor,
    Bt: Tensor,
    offsets: Sequence[int],
    scaling: Sequence[float],
    selection: Tensor,
    weights: Tensor,
) -> None:
    layout = layout_of(offsets, scaling)
    if selection.device.type == "cpu":
        check_selection(selection, layout.adapters)
    with _without_autocast(x):
        forward(x, A, Bt, layout, selection, weights, out)


_add_op = torch.library.custom_op("meteora::routed_lora_", _add, mutates_args=("out",))


@_add_op.register_fake
def _(
    out: Tensor,
    x: Tensor,
    A: Tensor,
    Bt: Tensor,
    offsets: Sequence[int],
    scaling: Sequence[float],
    selection: Tensor,
    weights: Tensor,
) -> None:
    return None


def _backward(
    grad: Tensor,
    x: Tensor | None,
    A: Tensor,
    Bt: Tensor,
    offsets: Sequence[int],
    scaling: Sequence[float],
    selection: Tensor,
    weights: Tensor,
    z: Tensor,
    for_A: bool,
    for_Bt: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layout = layout_of(offsets, scaling)
    dA, dBt = A.new_empty(0), Bt.new_empty(0)
    with _without_autocast(grad):
        u = shrink(grad, Bt, layout, selection)
        dx = expand(u, weights, A, layout, selection)
        d_weights = (u * z).sum(-1) * slot_scaling(layout, selection, z.dtype)
        factors = slot_factors(layout, selection, weights, z.dtype).unsqueeze(-1)
        if for_A and x is not None:
            dA = slot_outer_products(u * factors, x, layout, selection)
        if for_Bt:
            dBt = slot_outer_products(z * factors, grad, layout, selection)
    return dx, dA, dBt, d_weights.to(weights.dtype)


_backward_op = torch.library.custom_op("meteora::routed_lora_backward", _backward, mutates_args=())


@_backward_op.register_fake
def _(
    grad: Tensor,
    x: Tensor | None,
    A: Tensor,
    Bt: Tensor,
    offsets: Sequence[int],
    scaling: Sequence[float],
    selection: Tensor,
    weights: Tensor,
    z: Tensor,
    for_A: bool,
    for_Bt: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dA = torch.empty_like(A) if for_A else A.new_empty(0)
    dBt = torch.empty_like(Bt) if for_Bt else Bt.new_empty(0)
    return grad.new_empty(grad.shape[0], A.shape[1]), dA, dBt, torch.empty_like(weights)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, A, Bt, offsets, scaling, selection, weights, _ = inputs
    z = output[1]
    ctx.mark_non_differentiable(z)
    ctx.offsets, ctx.scaling = offsets, scaling
    ctx.save_for_backward(x if A.requires_grad else None, A, Bt, selection, weights, z)


def _pass_gradient(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, A, Bt, selection, weights, z = ctx.saved_tensors
    _, for_A, for_Bt, *_ = ctx.needs_input_grad
    backward = _backward_op if _is_traced(grad) else _backward
    dx, dA, dBt, d_weights = backward(
        grad.contiguous(), x, A, Bt, ctx.offsets, ctx.scaling, selection, weights, z, for_A, for_Bt
    )
    return dx, dA if for_A else None, dBt if for_Bt else None, None, None, None, d_weights, None


_forward_op.register_autograd(_pass_gradient, setup_context=_save_for_backward)


class _Eager(torch.autograd.Function):
    """The operator's autograd without the operator, for calls that nothing traces."""

    forward = staticmethod(_forward)
    setup_context = staticmethod(_save_for_backward)
    backward = staticmethod(_pass_gradient)


_differentiable: Callable[..., tuple[Tensor, Tensor]] = _Eager.apply


def _without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which products keep the operands' dtype, whatever autocast surrounds it."""
    if not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(device_type=x.device.type, enabled=False)
