"""The two products of routed LoRA, by whichever formulation suits the device and the sizes.

A *shrink* takes d features to the slots' ranks, an *expand* takes them to d features again. The forward is
``z = shrink(x, A)``, ``y = expand(w, z, Bt)``; the backward, experts frozen, is ``u = shrink(dO, Bt)``,
``dx = expand(w, u, A)``: the same two with the operands swapped, so that it costs what the forward costs
and needs nothing but z and the routing. Shapes are those of ``layout.py``.
"""

from __future__ import annotations

from torch import Tensor

from . import cpu_cost
from .dense import expand_dense, shrink_dense
from .gathered import expand_bag, expand_views, routed_views, shrink_views
from .grouped import expand_grouped, expand_grouped_mm, shrink_grouped, shrink_grouped_mm
from .layout import Layout
from .operands import accumulation_dtype
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
    x: Tensor,
    A: Tensor,
    Bt: Tensor,
    layout: Layout,
    selection: Tensor,
    weights: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """Return the routed output [T, D], added into `out` where one is given; z is not kept."""
    if cpu_cost.is_a_handful(x, layout, selection):
        return routed_views(x, A, Bt, layout, selection, weights, out)
    return expand(shrink(x, A, layout, selection), weights, Bt, layout, selection, out)


def shrink(v: Tensor, W: Tensor, layout: Layout, selection: Tensor) -> Tensor:
    """Return z [T, k, R] in the accumulation dtype: ``v_t W_i^T`` for each slot, zero past its rank."""
    if not layout.max_rank or not selection.numel():
        return v.new_zeros(*selection.shape, layout.max_rank, dtype=accumulation_dtype(v.dtype))
    if v.device.type != "cpu":
        return shrink_dense(v, W, layout, selection)
    return CPU_SHRINKS[cpu_cost.cheapest_shrink(W, layout, selection)](v, W, layout, selection)


def expand(
    z: Tensor, weights: Tensor, W: Tensor, layout: Layout, selection: Tensor, out: Tensor | None = None
) -> Tensor:
    """Return ``sum_j w_j s_i z_j W_i`` [T, d] in the dtype of `W`, added into `out` where one is given."""
    if not z.numel():
        return W.new_zeros(selection.shape[0], W.shape[1]) if out is None else out
    scaled = z * slot_factors(layout, selection, weights, z.dtype).unsqueeze(-1)
    if z.device.type != "cpu":
        return expand_dense(scaled, W, layout, selection, out)
    return CPU_EXPANDS[cpu_cost.cheapest_expand(W, layout, selection)](scaled, W, layout, selection, out)
