"""The torch operators of the namespace ``meteora``: what ``torch.compile`` keeps whole.

Each is a plain function first, registered with ``torch.library.custom_op`` and given a fake kernel. Calls
that nothing traces take the plain function (or its ``torch.autograd.Function``) itself, since the operator's
own machinery costs about 100 microseconds a call. The forward returns z next to the output: with the
routing it is all that a backward over frozen adapters needs. Leading dimensions are flattened here: x is
[T, h].

`backend_for` chooses who serves a call: Triton on a GPU that has it, torch operations everywhere else. Shapes
are those of ``layout.py``.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from . import products
from .layout import Layout, layout_of, layout_tensors
from .operands import accumulation_dtype
from .routing import Gate, Routing


def is_traced(x: Tensor) -> bool:
    """Return whether a compiler or a fake tensor asks for the operator rather than its function."""
    return is_dynamo_compiling() or type(x) not in (Tensor, torch.nn.Parameter)


def needs_gradient(*tensors: Tensor) -> bool:
    """Return whether gradients are enabled and one of the tensors requires them."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def is_autocast(x: Tensor) -> bool:
    """Return whether autocast would change the dtype of products of `x`."""
    # Asking a device for its type makes a string, which costs more than all the rest of this.
    return torch.is_autocast_enabled("cpu" if x.is_cpu else x.device.type)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which products keep the operands' dtype, whatever autocast surrounds it."""
    return torch.autocast(x.device.type, enabled=False) if is_autocast(x) else nullcontext()


def infer(
    x: Tensor, A: Tensor, Bt: Tensor, layout: Layout, routing: Routing, out: Tensor | None = None
) -> Tensor:
    """Return the routed output [T, D], added into `out` where one is given."""
    compute = backend_for(x, layout).forward
    if not is_autocast(x):
        return compute(x, A, Bt, layout, routing, out)
    with without_autocast(x):
        return compute(x, A, Bt, layout, routing, out)


def forward(
    x: Tensor,
    A: Tensor,
    Bt: Tensor,
    offsets: Sequence[int],
    scaling: Sequence[float],
    selection: Tensor,
    weights: Tensor,
    keep_z: bool,
) -> tuple[Tensor, Tensor]:
    """Return the routed output [T, D], and z [T, k, R], or an empty tensor unless `keep_z`."""
    layout, routing = layout_of(offsets, scaling), Routing(selection, weights)
    if not keep_z:
        no_z = x.new_empty(0, dtype=accumulation_dtype(x.dtype))
        return infer(x, A, Bt, layout, routing), no_z
    with without_autocast(x):
        return backend_for(x, layout).forward_with_z(x, A, Bt, layout, routing)


def add(
    out: Tensor,
    x: Tensor,
    A: Tensor,
    Bt: Tensor,
    offsets: Sequence[int],
    scaling: Sequence[float],
    selection: Tensor,
    weights: Tensor,
) -> None:
    """Add the routed output to `out` [T, D]."""
    infer(x, A, Bt, layout_of(offsets, scaling), Routing(selection, weights), out)


def infer_gated(x: Tensor, A: Tensor, Bt: Tensor, layout: Layout, gate: Gate, out: Tensor) -> Routing:
    """Return the gate's routing of x [T, h], after adding what it routes to `out` [T, D]."""
    compute = backend_for(x, layout).gated_forward
    if not is_autocast(x):
        return compute(x, A, Bt, layout, gate, out)
    with without_autocast(x):
        return compute(x, A, Bt, layout, gate, out)


def gated_add(
    out: Tensor,
    x: Tensor,
    A: Tensor,
    Bt: Tensor,
    offsets: Sequence[int],
    scaling: Sequence[float],
    gate: Tensor,
    bias: Tensor | None,
    kind: str,
    top_k: int,
    temperature: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return the selection and weights [T, k] of the gate, after adding what they route to `out` [T, D]."""
    layout, parts = layout_of(offsets, scaling), Gate(gate, bias, kind, top_k, temperature, eps)
    routing = infer_gated(x, A, Bt, layout, parts, out)
    return routing.selection, routing.weights


def backward(
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
    """Return the gradients of x, A, Bt and weights; those of A and Bt are empty unless asked for."""
    layout, routing = layout_of(offsets, scaling), Routing(selection, weights)
    backend = backend_for(grad, layout)
    dA, dBt = A.new_empty(0), Bt.new_empty(0)
    with without_autocast(grad):
        dx, u = backend.backward(grad, A, Bt, layout, routing)
        of_slot = layout_tensors(layout, grad.device, z.dtype).scaling.take(selection)
        d_weights = (u * z).sum(-1) * of_slot
        if for_A and x is not None:
            dA = backend.factors_gradient(u, x, layout, routing)
        if for_Bt:
            dBt = backend.factors_gradient(z, grad, layout, routing)
    return dx, dA, dBt, d_weights.to(weights.dtype)


forward_operator = torch.library.custom_op("meteora::routed_lora", forward, mutates_args=())
add_operator = torch.library.custom_op("meteora::routed_lora_", add, mutates_args=("out",))
gated_add_operator = torch.library.custom_op("meteora::gated_lora_", gated_add, mutates_args=("out",))
backward_operator = torch.library.custom_op("meteora::routed_lora_backward", backward, mutates_args=())


@forward_operator.register_fake
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


@add_operator.register_fake
def _(*_: object) -> None:
    return None


@gated_add_operator.register_fake
def _(
    out: Tensor,
    x: Tensor,
    A: Tensor,
    Bt: Tensor,
    offsets: Sequence[int],
    scaling: Sequence[float],
    gate: Tensor,
    bias: Tensor | None,
    kind: str,
    top_k: int,
    temperature: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    weights = gate.new_empty(x.shape[0], top_k)
    return weights.new_empty(weights.shape, dtype=torch.int64), weights


@backward_operator.register_fake
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
    traced = is_traced(grad)
    # z is kept as a constant: a graph of this backward would give second derivatives that are wrong.
    if torch.is_grad_enabled() and not traced:
        raise RuntimeError(
            "`routed_lora` has no second derivative, expected a backward without `create_graph=True`"
        )
    compute = backward_operator if traced else backward
    dx, dA, dBt, d_weights = compute(
        grad.contiguous(), x, A, Bt, ctx.offsets, ctx.scaling, selection, weights, z, for_A, for_Bt
    )
    return dx, dA if for_A else None, dBt if for_Bt else None, None, None, None, d_weights, None


forward_operator.register_autograd(_pass_gradient, setup_context=_save_for_backward)


class _Eager(torch.autograd.Function):
    """The operator's autograd without the operator.

    Without `setup_context` either: torch would bind the arguments by name at every call, 30 microseconds.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = forward(*inputs)
        _save_for_backward(ctx, inputs, output)
        return output

    backward = staticmethod(_pass_gradient)


differentiable_forward: Callable[..., tuple[Tensor, Tensor]] = _Eager.apply


class Backend(Protocol):
    """The functions that the modules ``products`` and ``gpu_products`` both have; x is [T, h], out [T, D]."""

    def forward(
        self, x: Tensor, A: Tensor, Bt: Tensor, layout: Layout, routing: Routing, out: Tensor | None = None
    ) -> Tensor:
        """Return the routed output [T, D], added into `out` where one is given."""

    def forward_with_z(
        self, x: Tensor, A: Tensor, Bt: Tensor, layout: Layout, routing: Routing
    ) -> tuple[Tensor, Tensor]:
        """Return the routed output [T, D], and z [T, k, R] in the accumulation dtype."""

    def gated_forward(
        self, x: Tensor, A: Tensor, Bt: Tensor, layout: Layout, gate: Gate, out: Tensor
    ) -> Routing:
        """Return the gate's routing of x, after adding the output it routes to `out`."""

    def backward(
        self, grad: Tensor, A: Tensor, Bt: Tensor, layout: Layout, routing: Routing
    ) -> tuple[Tensor, Tensor]:
        """Return dx [T, h], and ``u = dO Bt_i^T`` per slot, [T, k, R] in the accumulation dtype."""

    def factors_gradient(self, z: Tensor, v: Tensor, layout: Layout, routing: Routing) -> Tensor:
        """Return [N, d] in the dtype of v [T, d]: per adapter ``sum over its slots of w_j s_i z_j^T v_t``.

        With ``z = u`` and ``v = x`` it is dA, with z itself and ``v = dO`` it is dBt.
        """


def backend_for(x: Tensor, layout: Layout) -> Backend:
    """Return the module that serves the call, decided by device, dtype and shapes alone."""
    if not x.is_cuda or not has_triton(x.device):
        return products
    from . import gpu_products

    return gpu_products if gpu_products.serves(x, layout) else products


@functools.cache
def has_triton(device: torch.device) -> bool:
    """Return whether the Triton kernels run on this GPU: NVIDIA since sm80 (bf16), with triton installed."""
    if torch.version.cuda is None or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
