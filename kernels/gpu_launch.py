"""Launches of the Triton kernels: grids, block sizes and buffers, from shapes alone.

Everything here is decided by shapes, so that a launch is the same each time and can be captured in a CUDA
graph; call once before capturing, for the compilation and for the layout's tensors. What the shapes decide is
worked out once, in a `Plan` for the layout, the bucket of tokens and the dtype: a decoding step calls its 224
linears from the host, which has microseconds for each. Also runs in Triton's interpreter on CPU tensors, when
``TRITON_INTERPRET=1`` was set before the import. Shapes are those of ``layout.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import gpu_table
from .gate_kinds import GATE_KINDS
from .gpu_kernels import (
    expand_kernel,
    outer_kernel,
    project_kernel,
    route_kernel,
    shrink_kernel,
    spread_kernel,
)
from .gpu_table import BUCKET_TOKENS, INTERPRETED, Blocks, blocks_for
from .layout import Layout, LayoutTensors, layout_tensors
from .routing import Gate, Routing

LEAST_TILE = 16
MOST_SPLITS = 16
# Plans kept for each kernel: layouts times widths times buckets of tokens.
MOST_PLANS = 65536


@dataclass(frozen=True, slots=True)
class Plan:
    """The parts of one launch that its shapes decide.

    Attributes:
        grid: programs along each axis.
        known: the layout's tensors.
        splits: S, the planes of a sum that is split over d; 1 where none is.
        sizes: the kernel's extents that do not depend on the exact number of tokens, in its order.
        constants: the kernel's constants and the options of the launch.
    """

    grid: tuple[int, ...]
    known: LayoutTensors
    splits: int
    sizes: tuple[int, ...]
    constants: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Projection:
    """Planes of ``x [A ; gate]^T`` and of ``||x||^2``, float32: [S, T, N], [S, T, L], [S, T].

    `z` has no columns where the gate alone was projected; `squares` is any tensor for kinds of gates that do
    not read the length.
    """

    z: Tensor
    logits: Tensor
    squares: Tensor


def shrink(v: Tensor, W: Tensor, layout: Layout, selection: Tensor) -> Tensor:
    """Return planes [S, T, k, R] whose sum is z: ``v_t W_i^T`` of each slot, zero past its rank."""
    T, k = selection.shape
    plan = _plan(_shrink_plan, T, layout, v.shape[1], k, v.dtype, v.device)
    planes = torch.empty(plan.splits, T, k, layout.max_rank, dtype=torch.float32, device=v.device)
    known = plan.known
    shrink_kernel[plan.grid](
        v, W, known.starts, known.ranks, selection, planes, T, *plan.sizes, v.stride(0), **plan.constants
    )
    return planes


@functools.lru_cache(maxsize=MOST_PLANS)
def _shrink_plan(
    tokens: int, layout: Layout, d: int, k: int, dtype: torch.dtype, device: torch.device
) -> Plan:
    blocks = blocks_for("shrink", tokens, device, dtype)
    rank_tile = _tile(layout.max_rank, blocks.rank)
    tiles = _quotient(tokens, blocks.tokens), _quotient(layout.max_rank, rank_tile)
    step, chunk = _steps(d, dtype, blocks, tiles[0] * tiles[1])
    splits = _quotient(d, chunk)
    return Plan(
        (*tiles, splits),
        layout_tensors(layout, device, torch.float32),
        splits,
        (d, layout.rows, layout.adapters, layout.max_rank, chunk),
        {
            "K": k,
            "KP": _power(k),
            "BT": blocks.tokens,
            "BR": rank_tile,
            "BK": step,
            "EVEN": d % chunk == 0 == chunk % step,
            "UPCAST": INTERPRETED,
            "PRECISION": _precision(dtype),
            **_options(blocks),
        },
    )


def expand(planes: Tensor, W: Tensor, layout: Layout, routing: Routing, out: Tensor, *, add: bool) -> None:
    """Write ``sum_j w_j s_i z_j W_i`` of planes [S, T, k, R] to out [T, d], or add it.

    The features of `out` must be contiguous, its rows may be apart.
    """
    T, k = routing.selection.shape
    plan = _plan(_expand_plan, T, layout, W.shape[1], k, W.dtype, W.device, ("linear", False), False, add)
    known = plan.known
    # No gate is read: any tensors take the place of its operands.
    expand_kernel[plan.grid](
        planes, W, out, known.starts, known.ranks, known.scaling, routing.selection, routing.weights, planes,
        planes, planes, T, *plan.sizes, planes.shape[0], out.stride(0), 1.0, 0.0, **plan.constants,
    )  # fmt: skip


def route_and_expand(projection: Projection, W: Tensor, layout: Layout, gate: Gate, out: Tensor) -> Routing:
    """Return the routing of projected logits, after adding the projected z's expansion into out [T, d]."""
    S, T, _ = projection.logits.shape
    routing = _empty_routing(T, gate.top_k, W.device)
    plan = _plan(_expand_plan, T, layout, W.shape[1], gate.top_k, W.dtype, W.device, _form(gate), True, True)
    known = plan.known
    expand_kernel[plan.grid](
        projection.z, W, out, known.starts, known.ranks, known.scaling, routing.selection, routing.weights,
        projection.logits, projection.squares, _bias(gate), T, *plan.sizes, S, out.stride(0),
        float(gate.temperature), float(gate.eps), **plan.constants,
    )  # fmt: skip
    return routing


@functools.lru_cache(maxsize=MOST_PLANS)
def _expand_plan(
    tokens: int,
    layout: Layout,
    d: int,
    k: int,
    dtype: torch.dtype,
    device: torch.device,
    form: tuple[str, bool],
    gated: bool,
    add: bool,
) -> Plan:
    blocks = blocks_for("expand", tokens, device, dtype)
    features = _tile(d, blocks.features)
    kind, biased = form
    return Plan(
        (_quotient(tokens, blocks.tokens), _quotient(d, features)),
        layout_tensors(layout, device, torch.float32),
        1,
        (d, layout.rows, layout.adapters, layout.max_rank),
        {
            "K": k,
            "KP": _power(k),
            "BT": blocks.tokens,
            "BR": _tile(layout.max_rank, blocks.rank),
            "BD": features,
            # Read by a gate alone: no variant is worth compiling for it elsewhere.
            "LP": _power(layout.adapters) if gated else 2,
            "KIND": kind,
            "SQUARES": GATE_KINDS[kind].reads_length,
            "BIASED": biased,
            "GATED": gated,
            "ADD": add,
            "UPCAST": _widened(dtype),
            "PRECISION": _precision(dtype),
            **_options(blocks),
        },
    )


def project(x: Tensor, A: Tensor | None, layout: Layout, gate: Gate) -> Projection:
    """Return the planes of x against the gate's rows, and against all of A's where A is given."""
    T, h = x.shape
    plan = _plan(_project_plan, T, layout, h, x.dtype, x.device, gate.kind, A is not None)
    S, device, rows = plan.splits, x.device, plan.sizes[1]
    logits = torch.empty(S, T, layout.adapters, dtype=torch.float32, device=device)
    z = torch.empty(S, T, rows, dtype=torch.float32, device=device) if rows else logits
    squares = (
        torch.empty(S, T, dtype=torch.float32, device=device)
        if GATE_KINDS[gate.kind].reads_length
        else logits
    )
    *extents, a_tiles = plan.sizes
    project_kernel[plan.grid](
        x, x if A is None else A, gate.weight, z, logits, squares, T, *extents, x.stride(0), a_tiles,
        **plan.constants,
    )  # fmt: skip
    return Projection(z, logits, squares)


@functools.lru_cache(maxsize=MOST_PLANS)
def _project_plan(
    tokens: int,
    layout: Layout,
    h: int,
    dtype: torch.dtype,
    device: torch.device,
    kind: str,
    with_factors: bool,
) -> Plan:
    blocks = blocks_for("project", tokens, device, dtype)
    rows = layout.rows if with_factors else 0
    rank_tile = _tile(max(rows, layout.adapters), blocks.rank)
    a_tiles, gate_tiles = _quotient(rows, rank_tile), _quotient(layout.adapters, rank_tile)
    token_tiles = _quotient(tokens, blocks.tokens)
    step, chunk = _steps(h, dtype, blocks, (a_tiles + gate_tiles) * token_tiles)
    splits = _quotient(h, chunk)
    return Plan(
        (token_tiles, a_tiles + gate_tiles, splits),
        layout_tensors(layout, device, torch.float32),
        splits,
        (h, rows, layout.adapters, chunk, a_tiles),
        {
            "BT": blocks.tokens,
            "BR": rank_tile,
            "BK": step,
            "EVEN": h % chunk == 0 == chunk % step,
            "SQUARES": GATE_KINDS[kind].reads_length,
            "UPCAST": INTERPRETED,
            "PRECISION": _precision(dtype),
            **_options(blocks),
        },
    )


def route(projection: Projection, gate: Gate) -> Routing:
    """Return the top-k routing of projected logits."""
    S, T, L = projection.logits.shape
    device = projection.logits.device
    blocks = blocks_for("route", T, device, projection.logits.dtype)
    routing = _empty_routing(T, gate.top_k, device)
    route_kernel[(_quotient(T, blocks.tokens),)](
        projection.logits, projection.squares, _bias(gate), routing.selection, routing.weights, T, L, S,
        float(gate.temperature), float(gate.eps), KIND=gate.kind, SQUARES=GATE_KINDS[gate.kind].reads_length,
        BIASED=gate.bias is not None, K=gate.top_k, KP=_power(gate.top_k), BT=blocks.tokens, LP=_power(L),
        **_options(blocks),
    )  # fmt: skip
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
    spread_kernel[(_quotient(T, blocks.tokens), _quotient(layout.rows, row_tile))](
        dense, result, z, known.starts, known.owners, known.scaling, routing.selection, routing.weights, T,
        layout.rows, layout.adapters, layout.max_rank, K=k, KP=_power(k), BT=blocks.tokens, BN=row_tile,
        KEEP=keep_z, **_options(blocks),
    )  # fmt: skip
    return result, z


def outer(z: Tensor, v: Tensor, layout: Layout, routing: Routing) -> Tensor:
    """Return [N, d] in the dtype of `v`: per adapter ``sum over its slots of w_j s_i z_j^T v_t``."""
    T, k = routing.selection.shape
    d = v.shape[1]
    blocks = blocks_for("outer", T, v.device, v.dtype)
    rank_tile, features = _tile(layout.max_rank, blocks.rank), _tile(d, blocks.features)
    rank_tiles = _quotient(layout.max_rank, rank_tile)
    known = layout_tensors(layout, v.device, torch.float32)
    result = v.new_empty(layout.rows, d)
    outer_kernel[(layout.adapters * rank_tiles, _quotient(d, features))](
        z, v, result, known.starts, known.ranks, known.scaling, routing.selection, routing.weights, T, d,
        layout.adapters, layout.max_rank, v.stride(0), rank_tiles, K=k, KP=_power(k), BT=blocks.tokens,
        BR=rank_tile, BD=features, UPCAST=_widened(v.dtype), PRECISION=_precision(v.dtype),
        **_options(blocks),
    )  # fmt: skip
    return result


def _plan(make: Callable[..., Plan], T: int, *shapes: Any) -> Plan:
    """Return the kept plan of a launch for as many tokens; a fresh one while block sizes are tried out."""
    tokens = (T + BUCKET_TOKENS - 1) // BUCKET_TOKENS * BUCKET_TOKENS
    return (make.__wrapped__ if gpu_table.OVERRIDES else make)(tokens, *shapes)  # type: ignore[attr-defined]


def _form(gate: Gate) -> tuple[str, bool]:
    """Return what of a gate makes another kernel: its kind, and whether it has a bias."""
    return gate.kind, gate.bias is not None


def _options(blocks: Blocks) -> dict[str, Any]:
    return {"num_warps": blocks.warps, "num_stages": blocks.stages, "enable_fp_fusion": True}


def _empty_routing(T: int, k: int, device: torch.device) -> Routing:
    return Routing(
        torch.empty(T, k, dtype=torch.int64, device=device),
        torch.empty(T, k, dtype=torch.float32, device=device),
    )


def _bias(gate: Gate) -> Tensor:
    """Return the gate's bias, contiguous, or any fp32 tensor for a kernel that will not read it."""
    return gate.weight if gate.bias is None else gate.bias.contiguous()


def _steps(d: int, dtype: torch.dtype, blocks: Blocks, tiles: int) -> tuple[int, int]:
    """Return the width of a step over d features, and of the chunk that each split reduces."""
    step = _tile(d, blocks.bytes // dtype.itemsize)
    steps = _quotient(d, step)
    splits = min(steps, MOST_SPLITS, max(1, blocks.programs // tiles))
    return step, _quotient(steps, splits) * step


def _quotient(extent: int, tile: int) -> int:
    """Return how many tiles hold `extent`."""
    # `triton.cdiv` is a function of Triton's language too, and takes 2.9 microseconds from the host.
    return -(-extent // tile)


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
