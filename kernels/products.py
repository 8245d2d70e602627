"""Routed LoRA by torch operations alone: the CPU's path, and any other device's fallback.

A *shrink* takes d features to the slots' ranks, an *expand* takes them to d features again. The forward is
``z = shrink(x, A)``, ``y = expand(w, z, Bt)``; the backward, factors frozen, is ``u = shrink(dO, Bt)``,
``dx = expand(w, u, A)``: the same two with the operands swapped, so that it costs what the forward costs
and needs nothing but the routing (and z, for the gradient of the weights). On a CPU each takes the
formulation that ``cpu_cost.py`` calls cheapest; elsewhere the dense one.
Shapes are those of ``layout.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import cpu_cost
from .formulations import (
    expand_bag,
    expand_dense,
    expand_grouped,
    outer_products,
    routed_masked,
    routed_views,
    shrink_dense,
    shrink_grouped,
    shrink_sampled,
)
from .layout import Layout
from .operands import accumulation_dtype
from .routing import Gate, Routing
from .slots import Slots

Shrink = Callable[[Tensor, Tensor, Slots], Tensor]
Expand = Callable[[Tensor, Tensor, Slots, Tensor | None], Tensor]

CPU_SHRINKS: dict[str, Shrink] = {"sampled": shrink_sampled, "dense": shrink_dense, "grouped": shrink_grouped}
CPU_EXPANDS: dict[str, Expand] = {"bag": expand_bag, "dense": expand_dense, "grouped": expand_grouped}


def forward(
    x: Tensor, A: Tensor, Bt: Tensor, layout: Layout, routing: Routing, out: Tensor | None = None
) -> Tensor:
    """Return the routed output [T, D], added into `out` where one is given; z is not kept."""
    if not layout.rows or not x.shape[0]:
        return x.new_zeros(x.shape[0], Bt.shape[1]) if out is None else out
    if _takes_views(x, routing):
        return routed_views(x, A, Bt, layout, routing, out)[0]
    if x.is_cpu and cpu_cost.are_few_adapters(layout, routing, x.dtype):
        return routed_masked(x, A, Bt, layout, routing, out)
    slots = Slots(layout, routing)
    shrink, expand = _cheapest(x, A, Bt, slots)
    return expand(slots.weighted(shrink(x, A, slots)), Bt, slots, out)


def forward_with_z(
    x: Tensor, A: Tensor, Bt: Tensor, layout: Layout, routing: Routing
) -> tuple[Tensor, Tensor]:
    """Return the routed output [T, D], and z [T, k, R] in the accumulation dtype."""
    if not layout.rows or not x.shape[0]:
        z = x.new_zeros(*routing.selection.shape, layout.max_rank, dtype=accumulation_dtype(x.dtype))
        return x.new_zeros(x.shape[0], Bt.shape[1]), z
    if _takes_views(x, routing):
        output, parts = routed_views(x, A, Bt, layout, routing, None)
        if not layout.equal_ranks:
            parts = [pad(part, (0, layout.max_rank - part.numel())) for part in parts]
        return output, torch.cat(parts).view(*routing.selection.shape, layout.max_rank)
    slots = Slots(layout, routing)
    shrink, expand = _cheapest(x, A, Bt, slots)
    z = shrink(x, A, slots)
    return expand(slots.weighted(z), Bt, slots, None), slots.compact(z)


def gated_forward(x: Tensor, A: Tensor, Bt: Tensor, layout: Layout, gate: Gate, out: Tensor) -> Routing:
    """Return the gate's routing of x [T, h], after adding the output it routes to `out` [T, D]."""
    routing = gate.route(x)
    forward(x, A, Bt, layout, routing, out)
    return routing


def backward(grad: Tensor, A: Tensor, Bt: Tensor, layout: Layout, routing: Routing) -> tuple[Tensor, Tensor]:
    """Return dx [T, h], and ``u = dO Bt_i^T`` per slot, [T, k, R] in the accumulation dtype."""
    return forward_with_z(grad, Bt, A, layout, routing)


def factors_gradient(z: Tensor, v: Tensor, layout: Layout, routing: Routing) -> Tensor:
    """Return [N, d] in the dtype of `v`: per adapter ``sum over its slots of w_j s_i z_j^T v_t``.

    With ``z = u`` and ``v = x`` it is dA, with z itself and ``v = dO`` it is dBt.
    """
    if not z.numel():
        return v.new_zeros(layout.rows, v.shape[1])
    slots = Slots(layout, routing)
    return outer_products(slots.weighted(slots.row_form(z)), v, slots)


def _takes_views(x: Tensor, routing: Routing) -> bool:
    # They would widen bf16, which costs more than it saves.
    return x.dtype != torch.bfloat16 and cpu_cost.is_a_handful(x, routing.selection.shape[-1])


def _cheapest(x: Tensor, A: Tensor, Bt: Tensor, slots: Slots) -> tuple[Shrink, Expand]:
    if not x.is_cpu:
        return shrink_dense, expand_dense
    shrink, expand = cpu_cost.cheapest(slots, A.shape[1], Bt.shape[1], x.dtype)
    return CPU_SHRINKS[shrink], CPU_EXPANDS[expand]
