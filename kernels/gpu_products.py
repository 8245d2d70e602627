"""Routed LoRA on a GPU: which of the Triton kernels and cuBLAS products a call takes, by shapes alone.

With a routing given: two launches (shrink, expand), which touch only the adapters selected; or three where
tokens meet so few rows that cuBLAS over all of them is cheaper (product, spread, product). With a gate: a
decoding step projects x on A and on the gate in one launch, and the expansion finds its routing itself, two
launches in all; with more rows or tokens the routing is made first, in two. Nothing is read on the host.
The functions are those of ``products.py``; shapes are those of ``layout.py``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from . import gpu_launch
from .layout import Layout
from .operands import TRITON_DTYPES
from .routing import Gate, Routing

# Dense over all adapters is within 2 to 18 % of the floor up to here (roofline of an H100, 4096 features).
DENSE_ROWS = 512
# From as many tokens on, by a model of costs (docs/kernels.md), a tile that visits its adapters one after
# another waits longer than two products over all of them take.
DENSE_TOKENS = 8
FEW_TOKENS = 64
# A decoding step may read all adapters, routing unknown, while that costs less than the two launches saved.
GATED_ROWS = 768
_NO_CHANGE = nullcontext()


def serves(x: Tensor, layout: Layout) -> bool:
    """Return whether the kernels take this call: fp32, bf16 or fp16, and something to do."""
    return x.dtype in TRITON_DTYPES and x.shape[0] > 0 and layout.rows > 0


def takes_dense(tokens: int, layout: Layout, dtype: torch.dtype) -> bool:
    """Return whether a product over all adapters is cheaper, and as exact as the kernels are.

    Never in fp16, where its z could overflow, nor in fp32 while torch's products are tf32.
    """
    if tokens < DENSE_TOKENS or layout.rows > DENSE_ROWS or dtype == torch.float16:
        return False
    # What `torch.set_float32_matmul_precision` and `allow_tf32` set; it can be read whichever was used.
    return dtype != torch.float32 or torch.backends.cuda.matmul.fp32_precision != "tf32"


def forward(
    x: Tensor, A: Tensor, Bt: Tensor, layout: Layout, routing: Routing, out: Tensor | None = None
) -> Tensor:
    """Return the routed output [T, D], added into `out` where one is given; z is not kept."""
    return _apply(x, A, Bt, layout, routing, out, keep_z=False)[0]


def forward_with_z(
    x: Tensor, A: Tensor, Bt: Tensor, layout: Layout, routing: Routing
) -> tuple[Tensor, Tensor]:
    """Return the routed output [T, D] and z [T, k, R]."""
    return _apply(x, A, Bt, layout, routing, None, keep_z=True)


def gated_forward(x: Tensor, A: Tensor, Bt: Tensor, layout: Layout, gate: Gate, out: Tensor) -> Routing:
    """Return the gate's routing of x [T, h], after adding the output it routes to `out` [T, D]."""
    x = _rows(x)
    with _current_device(x):
        if _takes_gate(x, layout) and out.stride(-1) == 1:
            return gpu_launch.gated(x, A, Bt, layout, gate, out)
        routing = gpu_launch.route(x, layout, gate)
    forward(x, A, Bt, layout, routing, out)
    return routing


def backward(grad: Tensor, A: Tensor, Bt: Tensor, layout: Layout, routing: Routing) -> tuple[Tensor, Tensor]:
    """Return dx [T, h] and ``u = dO Bt_i^T`` per slot, [T, k, R]: the forward with the operands swapped."""
    return _apply(grad, Bt, A, layout, routing, None, keep_z=True)


def factors_gradient(z: Tensor, v: Tensor, layout: Layout, routing: Routing) -> Tensor:
    """Return [N, d]: per adapter ``sum over its slots of w_j s_i z_j^T v_t``."""
    with _current_device(v):
        return gpu_launch.outer(z, _rows(v), layout, _packed(routing))


def _takes_gate(x: Tensor, layout: Layout) -> bool:
    """Return whether the expansion finds the routing itself: few tokens, few rows."""
    tokens = x.shape[0]
    few = tokens <= FEW_TOKENS and layout.rows <= GATED_ROWS
    return few and not takes_dense(tokens, layout, x.dtype)


def _apply(
    v: Tensor,
    inward: Tensor,
    outward: Tensor,
    layout: Layout,
    routing: Routing,
    out: Tensor | None,
    *,
    keep_z: bool,
) -> tuple[Tensor, Tensor]:
    v, routing = _rows(v), _packed(routing)
    add = out is not None and out.stride(-1) == 1
    target = out if out is not None and add else v.new_empty(v.shape[0], outward.shape[1])
    with _current_device(v):
        if takes_dense(v.shape[0], layout, v.dtype):
            weighted, z = gpu_launch.spread(v @ inward.T, layout, routing, keep_z=keep_z)
            target = target.addmm_(weighted, outward) if add else torch.mm(weighted, outward, out=target)
        else:
            planes = gpu_launch.routed(v, inward, outward, layout, routing, target, add=add)
            z = planes[0] if planes.shape[0] == 1 or not keep_z else planes.sum(0)
    if out is not None and not add:
        target = out.add_(target)
    return target, z


def _rows(v: Tensor) -> Tensor:
    """Return `v` with contiguous features, as the kernels read it."""
    # Almost every tensor is contiguous, which takes the host a quarter of the time of a look at its stride.
    return v if v.is_contiguous() or v.stride(-1) == 1 else v.contiguous()


def _packed(routing: Routing) -> Routing:
    """Return the routing in contiguous tensors, as the kernels read it."""
    if routing.selection.is_contiguous() and routing.weights.is_contiguous():
        return routing
    return Routing(routing.selection.contiguous(), routing.weights.contiguous())


def _current_device(v: Tensor) -> AbstractContextManager[object]:
    """Return a context in which Triton launches on the GPU of `v`; it launches on the current one."""
    if not v.is_cuda or v.device.index == torch.cuda.current_device():
        return _NO_CHANGE
    return torch.cuda.device(v.device)
