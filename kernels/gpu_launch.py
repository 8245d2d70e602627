"""Launches of the Triton kernels: grids, block sizes and buffers, from shapes alone.

Everything here is decided by shapes, so that a launch is the same each time and can be captured in a CUDA
graph; call once before capturing, for the compilation and for the layout's tensors. Also runs in Triton's
interpreter on CPU tensors, when ``TRITON_INTERPRET=1`` was set before the import. Shapes are those of
``layout.py``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

# triton ships no type information.
import triton  # type: ignore[import-untyped]
from torch import Tensor

from .gate_kinds import GATE_KINDS
from .gpu_kernels import (
    expand_kernel,
    outer_kernel,
    project_kernel,
    route_kernel,
    shrink_kernel,
    spread_kernel,
)
from .gpu_table import INTERPRETED, Blocks, blocks_for
from .layout import Layout, layout_tensors
from .routing import Gate, Routing

LEAST_TILE = 16
MOST_SPLITS = 16


@dataclass(frozen=True, slots=True)
class Projection:
    """Planes of ``x [A ; gate]^T`` and of ``||x||^2``, float32: [S, T, N], [S, T, L], [S, T].

    `z` has no columns where the gate alone was projected; `squares` is written for kinds that read the
    length.
    """

    z: Tensor
    logits: Tensor
    squares: Tensor


def shrink(v: Tensor, W: Tensor, layout: Layout, selection: Tensor) -> Tensor:
    """Return planes [S, T, k, R] whose sum is z: ``v_t W_i^T`` of each slot, zero past its rank."""
    T, k = selection.shape
    d = v.shape[1]
    blocks = blocks_for("shrink", T, v.device, v.dtype)
    rank_tile = _tile(layout.max_rank, blocks.rank)
    tiles = triton.cdiv(T, blocks.tokens), triton.cdiv(layout.max_rank, rank_tile)
    step, chunk = _steps(v, blocks, tiles[0] * tiles[1])
    planes = torch.empty(triton.cdiv(d, chunk), T, k, layout.max_rank, dtype=torch.float32, device=v.device)
    known = layout_tensors(layout, v.device, torch.float32)
    shrink_kernel[(*tiles, planes.shape[0])](
        v, W, known.starts, known.ranks, selection, planes, T, d, layout.rows, layout.adapters,
        layout.max_rank, chunk, v.stride(0), K=k, KP=_power(k), BT=blocks.tokens, BR=rank_tile, BK=step,
        EVEN=d % chunk == 0 == chunk % step, UPCAST=INTERPRETED, PRECISION=_precision(v.dtype),
        num_warps=blocks.warps, num_stages=blocks.stages, enable_fp_fusion=True,
    )  # fmt: skip
    return planes


def expand(planes: Tensor, W: Tensor, layout: Layout, routing: Routing, out: Tensor, *, add: bool) -> None:
    """Write ``sum_j w_j s_i z_j W_i`` of planes [S, T, k, R] to out [T, d], or add it.

    The features of `out` must be contiguous, its rows may be apart.
    """
    unused = Projection(planes, planes, planes)
    _launch_expand(planes, W, layout, routing, out, unused, _no_gate(routing), gated=False, add=add)


def project(x: Tensor, A: Tensor | None, layout: Layout, gate: Gate) -> Projection:
    """Return the planes of x against the gate's rows, and against all of A's where A is given."""
    T, h = x.shape
    blocks = blocks_for("project", T, x.device, x.dtype)
    rows = 0 if A is None else layout.rows
    rank_tile = _tile(max(rows, layout.adapters), blocks.rank)
    a_tiles, gate_tiles = triton.cdiv(rows, rank_tile), triton.cdiv(layout.adapters, rank_tile)
    token_tiles = triton.cdiv(T, blocks.tokens)
    step, chunk = _steps(x, blocks, (a_tiles + gate_tiles) * token_tiles)
    S = triton.cdiv(h, chunk)
    z, logits, squares = (
        torch.empty(S, T, *columns, dtype=torch.float32, device=x.device)
        for columns in ((rows,), (layout.adapters,), ())
    )
    project_kernel[(token_tiles, a_tiles + gate_tiles, S)](
        x, x if A is None else A, gate.weight, z, logits, squares, T, h, rows, layout.adapters, chunk,
        x.stride(0), a_tiles, BT=blocks.tokens, BR=rank_tile, BK=step, EVEN=h % chunk == 0 == chunk % step,
        SQUARES=GATE_KINDS[gate.kind].reads_length, UPCAST=INTERPRETED, PRECISION=_precision(x.dtype),
        num_warps=blocks.warps, num_stages=blocks.stages, enable_fp_fusion=True,
    )  # fmt: skip
    return Projection(z, logits, squares)


def route(projection: Projection, gate: Gate) -> Routing:
    """Return the top-k routing of projected logits."""
    S, T, L = projection.logits.shape
    blocks = blocks_for("route", T, projection.logits.device, projection.logits.dtype)
    routing = _empty_routing(T, gate.top_k, projection.logits.device)
    route_kernel[(triton.cdiv(T, blocks.tokens),)](
        projection.logits, projection.squares, _bias(gate), routing.selection, routing.weights, T, L, S,
        float(gate.temperature), float(gate.eps), KIND=gate.kind, SQUARES=GATE_KINDS[gate.kind].reads_length,
        BIASED=gate.bias is not None, K=gate.top_k, KP=_power(gate.top_k), BT=blocks.tokens, LP=_power(L),
        num_warps=blocks.warps, num_stages=blocks.stages, enable_fp_fusion=True,
    )  # fmt: skip
    return routing


def route_and_expand(projection: Projection, W: Tensor, layout: Layout, gate: Gate, out: Tensor) -> Routing:
    """Return the routing of projected logits, after adding the projected z's expansion into out [T, d]."""
    routing = _empty_routing(projection.logits.shape[1], gate.top_k, out.device)
    _launch_expand(projection.z, W, layout, routing, out, projection, gate, gated=True, add=True)
    return routing


def spread(dense: Tensor, layout: Layout, routing: Routing, *, keep_z: bool) -> tuple[Tensor, Tensor]:
    """Return ``dense [T, N]`` weighted, zero where a token did not select the row's adapter, and z.

    z is [T, k, R], unweighted, or empty unless `keep_z`.
    """
    T, k = routing.selection.shape
    blocks = blocks_for("spread", T, dense.device, dense.dtype)
    row_tile = _tile(layout.rows, blocks.rank)
    known = layout_tensors(layout, dense.device, torch.float32)
    result = torch.empty_like(dense)
    z = dense.new_zeros((T, k, layout.max_rank) if keep_z else (0,), dtype=torch.float32)
    spread_kernel[(triton.cdiv(T, blocks.tokens), triton.cdiv(layout.rows, row_tile))](
        dense, result, z, known.starts, known.owners, known.scaling, routing.selection, routing.weights, T,
        layout.rows, layout.adapters, layout.max_rank, K=k, KP=_power(k), BT=blocks.tokens, BN=row_tile,
        KEEP=keep_z, num_warps=blocks.warps, num_stages=blocks.stages, enable_fp_fusion=True,
    )  # fmt: skip
    return result, z


def outer(z: Tensor, v: Tensor, layout: Layout, routing: Routing) -> Tensor:
    """Return [N, d] in the dtype of `v`: per adapter ``sum over its slots of w_j s_i z_j^T v_t``."""
    T, k = routing.selection.shape
    d = v.shape[1]
    blocks = blocks_for("outer", T, v.device, v.dtype)
    rank_tile, features = _tile(layout.max_rank, blocks.rank), _tile(d, blocks.features)
    rank_tiles = triton.cdiv(layout.max_rank, rank_tile)
    known = layout_tensors(layout, v.device, torch.float32)
    result = v.new_empty(layout.rows, d)
    outer_kernel[(layout.adapters * rank_tiles, triton.cdiv(d, features))](
        z, v, result, known.starts, known.ranks, known.scaling, routing.selection, routing.weights, T, d,
        layout.adapters, layout.max_rank, v.stride(0), rank_tiles, K=k, KP=_power(k), BT=blocks.tokens,
        BR=rank_tile, BD=features, UPCAST=_widened(v.dtype), PRECISION=_precision(v.dtype),
        num_warps=blocks.warps, num_stages=blocks.stages, enable_fp_fusion=True,
    )  # fmt: skip
    return result


def _launch_expand(
    planes: Tensor,
    W: Tensor,
    layout: Layout,
    routing: Routing,
    out: Tensor,
    projection: Projection,
    gate: Gate,
    *,
    gated: bool,
    add: bool,
) -> None:
    T, k = routing.selection.shape
    d = W.shape[1]
    blocks = blocks_for("expand", T, W.device, W.dtype)
    features = _tile(d, blocks.features)
    known = layout_tensors(layout, W.device, torch.float32)
    expand_kernel[(triton.cdiv(T, blocks.tokens), triton.cdiv(d, features))](
        planes, W, out, known.starts, known.ranks, known.scaling, routing.selection, routing.weights,
        projection.logits, projection.squares, _bias(gate), T, d, layout.rows, layout.adapters,
        layout.max_rank, planes.shape[0], out.stride(0), float(gate.temperature), float(gate.eps), K=k,
        KP=_power(k), BT=blocks.tokens, BR=_tile(layout.max_rank, blocks.rank), BD=features,
        LP=_power(layout.adapters), KIND=gate.kind, SQUARES=GATE_KINDS[gate.kind].reads_length,
        BIASED=gate.bias is not None, GATED=gated, ADD=add,
        UPCAST=_widened(W.dtype), PRECISION=_precision(W.dtype), num_warps=blocks.warps,
        num_stages=blocks.stages, enable_fp_fusion=True,
    )  # fmt: skip


def _no_gate(routing: Routing) -> Gate:
    return Gate(routing.weights, None, "linear", routing.selection.shape[1])


def _empty_routing(T: int, k: int, device: torch.device) -> Routing:
    return Routing(
        torch.empty(T, k, dtype=torch.int64, device=device),
        torch.empty(T, k, dtype=torch.float32, device=device),
    )


def _bias(gate: Gate) -> Tensor:
    """Return the gate's bias, contiguous, or any fp32 tensor for a kernel that will not read it."""
    return gate.weight if gate.bias is None else gate.bias.contiguous()


def _steps(v: Tensor, blocks: Blocks, tiles: int) -> tuple[int, int]:
    """Return the width of a step over the features of `v`, and of the chunk that each split reduces."""
    d = v.shape[1]
    step = _tile(d, blocks.bytes // v.element_size())
    steps = triton.cdiv(d, step)
    splits = min(steps, MOST_SPLITS, max(1, blocks.programs // tiles))
    return step, triton.cdiv(steps, splits) * step


def _tile(extent: int, limit: int) -> int:
    """Return a tile for `extent`: a power of two that `tl.dot` takes, at most `limit`."""
    return min(limit, max(LEAST_TILE, _power(extent)))


@functools.cache
def _power(extent: int) -> int:
    """Return the least power of two, 2 or more, that holds `extent`."""
    return max(2, 1 << (extent - 1).bit_length())


def _precision(dtype: torch.dtype) -> str:
    """Return the precision of fp32 products: exact for fp32; tf32 has all the bits that fp16 has."""
    return "ieee" if dtype == torch.float32 else "tf32"


def _widened(dtype: torch.dtype) -> bool:
    """Return whether weighted z meets W in fp32: in fp16 it could overflow."""
    return INTERPRETED or dtype == torch.float16
