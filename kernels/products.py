"""Routed LoRA by torch operations alone: the CPU's path, and any other device's fallback.

A *shrink* takes d features to the slots' ranks, an *expand* takes them to d features again. The forward is
``z = shrink(x, A)``, ``y = expand(w, z, Bt)``; the backward, experts frozen, is ``u = shrink(dO, Bt)``,
``dx = expand(w, u, A)``: the same two with the operands swapped, so that it costs what the forward costs
and needs nothing but the routing (and z, for the gradient of the weights). On a CPU each takes the
formulation that ``cpu_cost.py`` calls cheapest; elsewhere the dense one, which reads nothing on the host.
Shapes are those of ``layout.py``.
"""

from __future__ import annotations

from torch import Tensor

from . import cpu_cost
from .dense import expand_dense, shrink_dense
from .gathered import expand_bag, expand_views, routed_views, shrink_views
from .grouped import (
    expand_grouped,
    expand_grouped_mm,
    shrink_grouped,
    shrink_grouped_mm,
    slot_outer_products,
)
from .layout import Layout
from .operands import accumulation_dtype
from .routing import Gate, Routing
from .slots import slot_factors

CPU_SHRINKS = {
    "views": shrink_views,
    "dense": shrink_dense,
    "grouped": shrink_grouped,
    "grouped_mm": shrink_grouped_mm,
}
CPU_EXPANDS = {
    "views": expand_views,
    "dense": expand_dense,
    "bag": expand_bag,
    "grouped": expand_grouped,
    "grouped_mm": expand_grouped_mm,
}


def forward(
    x: Tensor, A: Tensor, Bt: Tensor, layout: Layout, routing: Routing, out: Tensor | None = None
) -> Tensor:
    """Return the routed output [T, D], added into `out` where one is given; z is not kept."""
    if cpu_cost.is_a_handful(x, layout, routing.selection):
        return routed_views(x, A, Bt, layout, routing, out)
    return _expand(_shrink(x, A, layout, routing), Bt, layout, routing, out)


def forward_with_z(
    x: Tensor, A: Tensor, Bt: Tensor, layout: Layout, routing: Routing
) -> tuple[Tensor, Tensor]:
    """Return the routed output [T, D], and z [T, k, R] in the accumulation dtype."""
    z = _shrink(x, A, layout, routing)
    return _expand(z, Bt, layout, routing, None), z


def gated_forward(x: Tensor, A: Tensor, Bt: Tensor, layout: Layout, gate: Gate, out: Tensor) -> Routing:
    """Return the gate's routing of x [T, h], after adding the output it routes to `out` [T, D]."""
    routing = gate.route(x)
    forward(x, A, Bt, layout, routing, out)
    return routing


def backward(grad: Tensor, A: Tensor, Bt: Tensor, layout: Layout, routing: Routing) -> tuple[Tensor, Tensor]:
    """Return dx [T, h], and ``u = dO Bt_i^T`` per slot, [T, k, R] in the accumulation dtype."""
    return forward_with_z(grad, Bt, A, layout, routing)


def experts_gradient(z: Tensor, v: Tensor, layout: Layout, routing: Routing) -> Tensor:
    """Return [N, d] in the dtype of `v`: per adapter ``sum over its slots of w_j s_i z_j^T v_t``.

    With ``z = u`` and ``v = x`` it is dA, with z itself and ``v = dO`` it is dBt.
    """
    return slot_outer_products(_weighted(z, layout, routing), v, layout, routing.selection)


def _shrink(v: Tensor, W: Tensor, layout: Layout, routing: Routing) -> Tensor:
    selection = routing.selection
    if not layout.max_rank or not selection.numel():
        return v.new_zeros(*selection.shape, layout.max_rank, dtype=accumulation_dtype(v.dtype))
    if v.device.type != "cpu":
        return shrink_dense(v, W, layout, selection)
    return CPU_SHRINKS[cpu_cost.cheapest_shrink(W, layout, selection)](v, W, layout, selection)


def _expand(z: Tensor, W: Tensor, layout: Layout, routing: Routing, out: Tensor | None) -> Tensor:
    selection = routing.selection
    if not z.numel():
        return W.new_zeros(selection.shape[0], W.shape[1]) if out is None else out
    weighted = _weighted(z, layout, routing)
    if z.device.type != "cpu":
        return expand_dense(weighted, W, layout, selection, out)
    return CPU_EXPANDS[cpu_cost.cheapest_expand(W, layout, selection)](weighted, W, layout, selection, out)


def _weighted(z: Tensor, layout: Layout, routing: Routing) -> Tensor:
    return z * slot_factors(layout, routing.selection, routing.weights, z.dtype).unsqueeze(-1)
