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
# Plans kept for each kind of call: layouts times widths times buckets of tokens.
MOST_PLANS = 65536
# The constants of an expansion that reads no gate: no variant is worth compiling for them.
_NO_GATE = {"LP": 2, "KIND": "linear", "SQUARES": False, "BIASED": False}


@dataclass(frozen=True, slots=True)
class Plan:
    """The parts of one launch that its shapes decide.

    Attributes:
        grid: programs along each axis.
        known: the layout's tensors.
        splits: S, the planes of a sum that is split over d; 1 where none is.
        sizes: the kernel's extents that do not depend on the exact number of tokens, in its order.
        constants: the kernel's constants and the options of the launch.
        floats: of all planes of a projection, for each token; 0 for other launches.
    """

    grid: tuple[int, ...]
    known: LayoutTensors
    splits: int
    sizes: tuple[int, ...]
    constants: dict[str, Any]
    floats: int = 0


def gated(x: Tensor, A: Tensor, Bt: Tensor, layout: Layout, gate: Gate, out: Tensor) -> Routing:
    """Return the gate's routing of x [T, h], after adding what it routes into out [T, D]; two launches.

    The features of `out` must be contiguous, its rows may be apart.
    """
    T, h = x.shape
    device = x.device
    projection, expansion = _plan(
        _gated_plans, T, layout, h, Bt.shape[1], gate.top_k, x.dtype, device, gate.kind, gate.bias is not None
    )
    sums = _project(projection, x, A, gate.weight, T)
    routing = _empty_routing(T, gate.top_k, device)
    known = expansion.known
    expand_kernel[expansion.grid](
        sums, Bt, out, known.starts, known.ranks, known.scaling, routing.selection, routing.weights,
        _bias(gate), T, *expansion.sizes, projection.splits, out.stride(0), float(gate.temperature),
        float(gate.eps), **expansion.constants,
    )  # fmt: skip
    return routing


def route(x: Tensor, layout: Layout, gate: Gate) -> Routing:
    """Return the gate's top-k routing of x [T, h]; two launches."""
    T, h = x.shape
    device = x.device
    projection, choice = _plan(
        _route_plans, T, layout, h, gate.top_k, x.dtype, device, gate.kind, gate.bias is not None
    )
    sums = _project(projection, x, x, gate.weight, T)
    routing = _empty_routing(T, gate.top_k, device)
    route_kernel[choice.grid](
        sums, _bias(gate), routing.selection, routing.weights, T, layout.adapters, projection.splits,
        float(gate.temperature), float(gate.eps), **choice.constants,
    )  # fmt: skip
    return routing


def routed(
    v: Tensor, inward: Tensor, outward: Tensor, layout: Layout, routing: Routing, out: Tensor, *, add: bool
) -> Tensor:
    """Return planes [S, T, k, R] whose sum is z, after writing the routed output to out [T, D], or adding it.

    z is ``v_t W_i^T`` of each slot with W the `inward` factors, zero past its rank; the output is
    ``sum_j w_j s_i z_j W_i`` with the `outward` ones. The features of `out` must be contiguous, its rows may
    be apart. Two launches.
    """
    T, k = routing.selection.shape
    device = v.device
    shrinking, expansion = _plan(
        _routed_plans, T, layout, v.shape[1], outward.shape[1], k, v.dtype, device, add
    )
    planes = torch.empty(shrinking.splits, T, k, layout.max_rank, dtype=torch.float32, device=device)
    known = shrinking.known
    shrink_kernel[shrinking.grid](
        v, inward, known.starts, known.ranks, routing.selection, planes, T, *shrinking.sizes, v.stride(0),
        **shrinking.constants,
    )  # fmt: skip
    # No gate is read: any tensor takes the place of its bias.
    expand_kernel[expansion.grid](
        planes, outward, out, known.starts, known.ranks, known.scaling, routing.selection, routing.weights,
        planes, T, *expansion.sizes, shrinking.splits, out.stride(0), 1.0, 0.0, **expansion.constants,
    )  # fmt: skip
    return planes


def _project(plan: Plan, x: Tensor, A: Tensor, gate: Tensor, T: int) -> Tensor:
    """Return flat planes: x [T, h] against the plan's rows of A, against the gate's, and ``||x||^2``."""
    # One buffer for all three: an allocation costs the host more than most lines here.
    sums = torch.empty(plan.floats * T, dtype=torch.float32, device=x.device)
    project_kernel[plan.grid](x, A, gate, sums, T, *plan.sizes, x.stride(0), **plan.constants)
    return sums


@functools.lru_cache(maxsize=MOST_PLANS)
def _gated_plans(
    tokens: int,
    layout: Layout,
    h: int,
    D: int,
    k: int,
    dtype: torch.dtype,
    device: torch.device,
    kind: str,
    biased: bool,
) -> tuple[Plan, Plan]:
    return (
        _project_plan(tokens, layout, h, dtype, device, kind, layout.rows),
        _expand_plan(tokens, layout, D, k, dtype, device, _gate_constants(layout, kind, biased), add=True),
    )


@functools.lru_cache(maxsize=MOST_PLANS)
def _routed_plans(
    tokens: int,
    layout: Layout,
    d_in: int,
    d_out: int,
    k: int,
    dtype: torch.dtype,
    device: torch.device,
    add: bool,
) -> tuple[Plan, Plan]:
    return (
        _shrink_plan(tokens, layout, d_in, k, dtype, device),
        _expand_plan(tokens, layout, d_out, k, dtype, device, None, add=add),
    )


@functools.lru_cache(maxsize=MOST_PLANS)
def _route_plans(
    tokens: int,
    layout: Layout,
    h: int,
    k: int,
    dtype: torch.dtype,
    device: torch.device,
    kind: str,
    biased: bool,
) -> tuple[Plan, Plan]:
    blocks = blocks_for("route", tokens, device, torch.float32)
    constants = {
        **_gate_constants(layout, kind, biased), "K": k, "KP": _power(k), "BT": blocks.tokens,
        **_options(blocks),
    }  # fmt: skip
    choice = Plan(
        (_quotient(tokens, blocks.tokens),), layout_tensors(layout, device, torch.float32), 1, (), constants
    )
    return _project_plan(tokens, layout, h, dtype, device, kind, 0), choice


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


def _expand_plan(
    tokens: int,
    layout: Layout,
    d: int,
    k: int,
    dtype: torch.dtype,
    device: torch.device,
    gate: dict[str, Any] | None,
    *,
    add: bool,
) -> Plan:
    blocks = blocks_for("expand", tokens, device, dtype)
    features = _tile(d, blocks.features)
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
            **(gate or _NO_GATE),
            "GATED": gate is not None,
            "ADD": add,
            "UPCAST": _widened(dtype),
            "PRECISION": _precision(dtype),
            **_options(blocks),
        },
    )


def _project_plan(
    tokens: int, layout: Layout, h: int, dtype: torch.dtype, device: torch.device, kind: str, rows: int
) -> Plan:
    """Return the plan of a projection on the gate's rows and on this many of A's."""
    blocks = blocks_for("project", tokens, device, dtype)
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
        splits * (rows + layout.adapters + 1),
    )


def _gate_constants(layout: Layout, kind: str, biased: bool) -> dict[str, Any]:
    """Return the constants of a kernel that reads a gate's logits."""
    return {
        "LP": _power(layout.adapters),
        "KIND": kind,
        "SQUARES": GATE_KINDS[kind].reads_length,
        "BIASED": biased,
    }


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


def _plan(make: Callable[..., tuple[Plan, Plan]], T: int, *shapes: Any) -> tuple[Plan, Plan]:
    """Return the kept plans of a call with as many tokens; fresh ones while block sizes are tried out."""
    tokens = (T + BUCKET_TOKENS - 1) // BUCKET_TOKENS * BUCKET_TOKENS
    return (make.__wrapped__ if gpu_table.OVERRIDES else make)(tokens, *shapes)  # type: ignore[attr-defined]


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
