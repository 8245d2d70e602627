"""Triton kernels of routed LoRA: no sort, no atomics, static grids, nothing read on the host.

A tile of tokens visits the adapters its tokens selected, in ascending order, by taking the least selected
adapter above the last one: adapters that no token of the tile chose are never touched, and every sum has one
fixed order, so that repeated runs are bit-identical and every launch fits a CUDA graph.

Rows past an adapter's rank, up to the tile's width, are its neighbour's: the shrink reads them (clamped to
the storage) and drops them when z is stored, so that no loaded rank masks the inner loop. That relies on
finite factors. Where the largest rank makes tiles wide, adapters of rank 16 or less get tiles of 16, so that
they do not pay for it. An adapter index outside 0 .. L - 1 is never visited: it adds and reads nothing.

Sums are fp32. Partial sums over d are kept in planes ``[S, ...]`` that the consumer adds up. Triton's
interpreter computes garbage with bf16, hence ``UPCAST``. Shapes are those of ``layout.py``; v is x or dO,
W is A or Bt, d their features.
"""

# Triton's language has no types for pointers, and a kernel's parameters are not Python values.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False

from __future__ import annotations

# triton ships no type information.
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

# Numbers of tokens and planes differ from call to call: no variant of a kernel is worth compiling for them.
SIZES = ["T", "S"]
# The least width that `tl.dot` takes.
LEAST = tl.constexpr(16)


@triton.jit
def _chosen(selection, tokens, T, L, K: tl.constexpr, KP: tl.constexpr):
    """Return the selection of a tile of tokens, int32 [tokens, KP], L where there is none."""
    slots = tl.arange(0, KP)
    inside = (tokens < T)[:, None] & (slots < K)[None, :]
    at = tokens.to(tl.int64)[:, None] * K + slots[None, :]
    chosen = tl.load(selection + at, mask=inside, other=-1)
    return tl.where((chosen >= 0) & (chosen < L), chosen, L).to(tl.int32)


@triton.jit
def _shares(weights, tokens, T, K: tl.constexpr, KP: tl.constexpr):
    slots = tl.arange(0, KP)
    inside = (tokens < T)[:, None] & (slots < K)[None, :]
    at = tokens.to(tl.int64)[:, None] * K + slots[None, :]
    return tl.load(weights + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _next(chosen, last, L):
    """Return the least adapter of the tile above `last`, or L."""
    return tl.min(tl.min(tl.where(chosen > last, chosen, L), axis=1), axis=0)


@triton.jit
def _slot(values, j: tl.constexpr, KP: tl.constexpr):
    """Return column `j` of `values` [tokens, KP]."""
    return tl.sum(tl.where((tl.arange(0, KP) == j)[None, :], values, 0), axis=1)


@triton.jit
def _product(
    v, W, tokens, rows, begin, end, T, d, stride, BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
    EVEN: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return ``v[tokens, begin:end] W[rows, begin:end]^T``, fp32 [BT, BR]; tokens and rows are clamped."""
    v_rows = v + tl.minimum(tokens, T - 1).to(tl.int64)[:, None] * stride
    W_rows = W + rows.to(tl.int64)[:, None] * d
    total = tl.zeros((BT, BR), dtype=tl.float32)
    for first in range(begin, end, BK):
        columns = first + tl.arange(0, BK)
        if EVEN:
            a = tl.load(v_rows + columns[None, :])
            b = tl.load(W_rows + columns[None, :])
        else:
            a = tl.load(v_rows + columns[None, :], mask=(columns < end)[None, :], other=0.0)
            b = tl.load(W_rows + columns[None, :], mask=(columns < end)[None, :], other=0.0)
        if UPCAST:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    return total


@triton.jit
def _store_z(planes, z, served, slot, r, R, K: tl.constexpr, KP: tl.constexpr):
    """Write columns `r` of z, those below R, to each slot that was served."""
    for j in tl.static_range(K):
        here = (_slot(served, j, KP) > 0)[:, None] & (r < R)[None, :]
        tl.store(planes + (slot + j)[:, None] * R + r[None, :], z, mask=here)


@triton.jit(do_not_specialize=SIZES)
def shrink_kernel(
    v, W, starts, ranks, selection, planes, T, d, N, L, R, chunk, stride, K: tl.constexpr, KP: tl.constexpr,
    BT: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr, UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write planes [S, T, K, R]: z of each slot over chunk s of d, zero past its adapter's rank.

    Grid: token tiles, rank tiles, S.
    """
    tokens = tl.program_id(0) * BT + tl.arange(0, BT)
    r = tl.program_id(1) * BR + tl.arange(0, BR)
    split = tl.program_id(2)
    begin = split * chunk
    end = tl.minimum(begin + chunk, d)
    chosen = _chosen(selection, tokens, T, L, K, KP)
    slot = (split.to(tl.int64) * T + tokens) * K
    adapter = _next(chosen, -1, L)
    while adapter < L:
        start = tl.load(starts + adapter).to(tl.int32)
        rank = tl.load(ranks + adapter).to(tl.int32)
        served = (chosen == adapter).to(tl.int32)
        z = tl.zeros((BT, BR), dtype=tl.float32)
        # Rows that the narrow tile stores, in the first tile of a small rank.
        narrow = 0
        if BR > LEAST:  # noqa: SIM102 - the first is a constant of the kernel
            if (rank > 0) & (rank <= LEAST) & (tl.program_id(1) == 0):
                narrow = LEAST
                n = tl.arange(0, LEAST)
                rows = tl.minimum(start + n, N - 1)
                small = _product(
                    v, W, tokens, rows, begin, end, T, d, stride, BT, LEAST, BK, EVEN, UPCAST, PRECISION
                )
                small = tl.where((n < rank)[None, :], small, 0.0)
                _store_z(planes, small, served, slot, n, R, K, KP)
        if (rank > tl.program_id(1) * BR) & (narrow == 0):
            rows = tl.minimum(start + r, N - 1)
            z = _product(v, W, tokens, rows, begin, end, T, d, stride, BT, BR, BK, EVEN, UPCAST, PRECISION)
            z = tl.where((r < rank)[None, :], z, 0.0)
        _store_z(planes, z, served, slot, tl.where(r < narrow, R, r), R, K, KP)
        adapter = _next(chosen, adapter, L)


@triton.jit
def _finish(z, squares, eps, KIND: tl.constexpr):
    """Return the logits of products z, bias aside, by kind; squares are the tokens' ``||x||^2``."""
    if KIND == "absolute":
        z = tl.abs(z)
    elif KIND == "normalised":
        z = z / (tl.sqrt(squares) + eps)[:, None]
    else:
        tl.static_assert(KIND == "linear", "this kind of gate has no Triton form")
    return z


@triton.jit
def _logits(
    planes, bias, tokens, columns, T, L, S, eps, KIND: tl.constexpr, SQUARES: tl.constexpr,
    BIASED: tl.constexpr, BT: tl.constexpr, LP: tl.constexpr,
):  # fmt: skip
    """Return the gate's logits, fp32 [BT, LP], from planes [S, T, L], then squares [S, T].

    KIND is a name in ``gate_kinds.py``.
    """
    squares = planes + tl.cast(S, tl.int64) * T * L
    inside = (tokens < T)[:, None] & (columns < L)[None, :]
    z = tl.zeros((BT, LP), dtype=tl.float32)
    norm = tl.zeros((BT,), dtype=tl.float32)
    for s in range(S):
        at = tl.cast(s, tl.int64) * T + tokens
        z += tl.load(planes + at[:, None] * L + columns[None, :], mask=inside, other=0.0)
        if SQUARES:
            norm += tl.load(squares + at, mask=tokens < T, other=0.0)
    z = _finish(z, norm, eps, KIND)
    if BIASED:
        z += tl.load(bias + columns, mask=columns < L, other=0.0)[None, :]
    return z


@triton.jit
def _top_k(z, columns, L, temperature, K: tl.constexpr, KP: tl.constexpr, BT: tl.constexpr, LP: tl.constexpr):
    """Return selection int32 and weights fp32 [BT, KP]: L and 0 past K; ties to the lowest index.

    A NaN counts as the highest, as in `torch.sort`, and makes its token's weights NaN.
    """
    slots = tl.arange(0, KP)
    infinity = float("inf")
    left = tl.broadcast_to((columns < L)[None, :], (BT, LP))
    ranked = tl.where(z == z, z, infinity)
    chosen = tl.full((BT, KP), 0, dtype=tl.int32) + L
    kept = tl.full((BT, KP), -infinity, dtype=tl.float32)
    for j in tl.static_range(K):
        best = tl.max(tl.where(left, ranked, -infinity), axis=1)
        hit = left & (ranked == best[:, None])
        index = tl.min(tl.where(hit, columns[None, :], LP), axis=1)
        taken = columns[None, :] == index[:, None]
        value = tl.sum(tl.where(taken, z, 0.0), axis=1)
        chosen = tl.where((slots == j)[None, :], index[:, None], chosen)
        kept = tl.where((slots == j)[None, :], value[:, None], kept)
        left = left & (taken == 0)
    scaled = kept / temperature
    top = tl.sum(tl.where((slots == 0)[None, :], scaled, 0.0), axis=1)
    share = tl.where((slots < K)[None, :], tl.exp(scaled - top[:, None]), 0.0)
    return chosen, share / tl.sum(share, axis=1)[:, None]


@triton.jit
def _store_routing(selection, weights, chosen, shares, tokens, T, K: tl.constexpr, KP: tl.constexpr):
    slots = tl.arange(0, KP)
    inside = (tokens < T)[:, None] & (slots < K)[None, :]
    at = tokens.to(tl.int64)[:, None] * K + slots[None, :]
    tl.store(selection + at, chosen.to(tl.int64), mask=inside)
    tl.store(weights + at, shares, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def project_kernel(
    x, A, gate, planes, T, h, N, L, chunk, A_TILES, stride, BT: tl.constexpr, BR: tl.constexpr,
    BK: tl.constexpr, EVEN: tl.constexpr, SQUARES: tl.constexpr, UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write ``x [A ; gate]^T`` over chunk s of h to planes, fp32: [S, T, N], behind it [S, T, L].

    The gate's rows are fp32 whatever A is, and multiplied so. ``SQUARES`` also writes ``||x||^2``, behind
    both [S, T].
    Grid: token tiles, tiles of A's rows then of the gate's, S.
    """
    tokens = tl.program_id(0) * BT + tl.arange(0, BT)
    tile = tl.program_id(1)
    split = tl.program_id(2)
    begin = split * chunk
    end = tl.minimum(begin + chunk, h)
    at = split.to(tl.int64) * T + tokens
    if tile < A_TILES:
        n = tile * BR + tl.arange(0, BR)
        rows = tl.minimum(n, N - 1)
        z = _product(x, A, tokens, rows, begin, end, T, h, stride, BT, BR, BK, EVEN, UPCAST, PRECISION)
        inside = (tokens < T)[:, None] & (n < N)[None, :]
        tl.store(planes + at[:, None] * N + n[None, :], z, mask=inside)
    else:
        logit_planes = planes + tl.cast(tl.num_programs(2), tl.int64) * T * N
        n = (tile - A_TILES) * BR + tl.arange(0, BR)
        gate_rows = gate + tl.minimum(n, L - 1).to(tl.int64)[:, None] * h
        x_rows = x + tl.minimum(tokens, T - 1).to(tl.int64)[:, None] * stride
        z = tl.zeros((BT, BR), dtype=tl.float32)
        norm = tl.zeros((BT,), dtype=tl.float32)
        for first in range(begin, end, BK):
            columns = first + tl.arange(0, BK)
            inside_h = (columns < end)[None, :]
            a = tl.load(x_rows + columns[None, :], mask=inside_h, other=0.0).to(tl.float32)
            b = tl.load(gate_rows + columns[None, :], mask=inside_h, other=0.0)
            z = tl.dot(a, tl.trans(b), z, input_precision="ieee")
            if SQUARES:
                norm += tl.sum(a * a, axis=1)
        inside = (tokens < T)[:, None] & (n < L)[None, :]
        tl.store(logit_planes + at[:, None] * L + n[None, :], z, mask=inside)
        if SQUARES:
            squares = logit_planes + tl.cast(tl.num_programs(2), tl.int64) * T * L
            tl.store(squares + at, norm, mask=tokens < tl.where(tile == A_TILES, T, 0))


@triton.jit(do_not_specialize=SIZES)
def route_kernel(
    planes, bias, selection, weights, T, L, S, temperature, eps, LP: tl.constexpr, KIND: tl.constexpr,
    SQUARES: tl.constexpr, BIASED: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Write the routing [T, K] of logits given as `_logits` takes them. Grid: token tiles."""
    tokens = tl.program_id(0) * BT + tl.arange(0, BT)
    columns = tl.arange(0, LP)
    z = _logits(planes, bias, tokens, columns, T, L, S, eps, KIND, SQUARES, BIASED, BT, LP)
    chosen, shares = _top_k(z, columns, L, temperature, K, KP, BT, LP)
    _store_routing(selection, weights, chosen, shares, tokens, T, K, KP)


@triton.jit(do_not_specialize=SIZES)
def expand_kernel(
    planes, W, out, starts, ranks, scaling, selection, weights, bias, T, d, N, L, R, S, stride,
    temperature, eps, K: tl.constexpr, KP: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr,
    BD: tl.constexpr, LP: tl.constexpr, KIND: tl.constexpr, SQUARES: tl.constexpr, BIASED: tl.constexpr,
    GATED: tl.constexpr, ADD: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write, or with ``ADD`` add into, out [T, d]: ``sum_j w_j s_i z_j W_i``.

    ``GATED``: planes are what the projection wrote; the routing comes from its logits and is written to
    selection and weights as well. Otherwise planes are [S, T, K, R] and the routing is read.
    Grid: token tiles, tiles of d.
    """
    tokens = tl.program_id(0) * BT + tl.arange(0, BT)
    columns = tl.program_id(1) * BD + tl.arange(0, BD)
    slots = tl.arange(0, KP)
    if GATED:
        adapters = tl.arange(0, LP)
        logit_planes = planes + tl.cast(S, tl.int64) * T * N
        logits = _logits(logit_planes, bias, tokens, adapters, T, L, S, eps, KIND, SQUARES, BIASED, BT, LP)
        chosen, shares = _top_k(logits, adapters, L, temperature, K, KP, BT, LP)
        if tl.program_id(1) == 0:
            _store_routing(selection, weights, chosen, shares, tokens, T, K, KP)
        chosen = tl.where((tokens < T)[:, None], chosen, L)
    else:
        chosen = _chosen(selection, tokens, T, L, K, KP)
        shares = _shares(weights, tokens, T, K, KP)
    total = tl.zeros((BT, BD), dtype=tl.float32)
    adapter = _next(chosen, -1, L)
    while adapter < L:
        start = tl.load(starts + adapter).to(tl.int32)
        rank = tl.load(ranks + adapter).to(tl.int32)
        served = chosen == adapter
        present = tl.max(served.to(tl.int32), axis=1) > 0
        factor = tl.sum(tl.where(served, shares, 0.0), axis=1) * tl.load(scaling + adapter)
        slot = tl.max(tl.where(served, slots[None, :], 0), axis=1)
        for first in range(0, rank, BR):
            r = first + tl.arange(0, BR)
            wanted = present[:, None] & (r < rank)[None, :]
            z = tl.zeros((BT, BR), dtype=tl.float32)
            for s in range(S):
                at = tl.cast(s, tl.int64) * T + tokens
                if GATED:
                    z += tl.load(planes + at[:, None] * N + (start + r)[None, :], mask=wanted, other=0.0)
                else:
                    z += tl.load(planes + (at * K + slot)[:, None] * R + r[None, :], mask=wanted, other=0.0)
            z = tl.where(wanted, z * factor[:, None], 0.0)
            rows = tl.minimum(start + r, N - 1).to(tl.int64)
            own = (r < rank)[:, None] & (columns < d)[None, :]
            b = tl.load(W + rows[:, None] * d + columns[None, :], mask=own, other=0.0)
            if UPCAST:
                b = b.to(tl.float32)
            total = tl.dot(z.to(b.dtype), b, total, input_precision=PRECISION)
        adapter = _next(chosen, adapter, L)
    target = out + tokens.to(tl.int64)[:, None] * stride + columns[None, :]
    inside = (tokens < T)[:, None] & (columns < d)[None, :]
    if ADD:
        total += tl.load(target, mask=inside, other=0.0).to(tl.float32)
    tl.store(target, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def spread_kernel(
    dense, spread, z, starts, owners, scaling, selection, weights, T, N, L, R, K: tl.constexpr,
    KP: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Write spread [T, N]: dense [T, N] times ``w_j s_i`` where its row's adapter was selected, else 0.

    ``KEEP`` also writes z [T, K, R], unweighted. `owners` [N] is each row's adapter. Grid: token tiles,
    tiles of N.
    """
    tokens = tl.program_id(0) * BT + tl.arange(0, BT)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    chosen = _chosen(selection, tokens, T, L, K, KP)
    shares = _shares(weights, tokens, T, K, KP)
    inside = (tokens < T)[:, None] & (n < N)[None, :]
    at = tokens.to(tl.int64)[:, None] * N + n[None, :]
    values = tl.load(dense + at, mask=inside, other=0.0).to(tl.float32)
    owner = tl.load(owners + n, mask=n < N, other=-1)
    r = n - tl.load(starts + owner, mask=n < N, other=0).to(tl.int32)
    factor = tl.zeros((BT, BN), dtype=tl.float32)
    any_slot = tl.zeros((BT, BN), dtype=tl.int32)
    for j in tl.static_range(K):
        served = _slot(chosen, j, KP)[:, None] == owner[None, :]
        factor += tl.where(served, _slot(shares, j, KP)[:, None], 0.0)
        any_slot = tl.maximum(any_slot, served.to(tl.int32))
        if KEEP:
            slot = tokens.to(tl.int64) * K + j
            tl.store(z + slot[:, None] * R + r[None, :], values, mask=served & inside)
    factor = factor * tl.load(scaling + owner, mask=n < N, other=0.0)[None, :]
    weighted = tl.where(any_slot > 0, values * factor, 0.0)
    tl.store(spread + at, weighted.to(spread.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def outer_kernel(
    z, v, result, starts, ranks, scaling, selection, weights, T, d, L, R, stride, RANK_TILES,
    K: tl.constexpr, KP: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write result [N, d]: per adapter ``sum over its slots of w_j s_i z_j^T v_t``, z being [T, K, R].

    Tokens that did not choose the adapter are replaced by zeros, not multiplied by them. Grid: adapters
    times rank tiles, tiles of d.
    """
    adapter = tl.program_id(0) // RANK_TILES
    r = (tl.program_id(0) % RANK_TILES) * BR + tl.arange(0, BR)
    columns = tl.program_id(1) * BD + tl.arange(0, BD)
    slots = tl.arange(0, KP)
    start = tl.load(starts + adapter).to(tl.int32)
    rank = tl.load(ranks + adapter).to(tl.int32)
    scale = tl.load(scaling + adapter)
    total = tl.zeros((BR, BD), dtype=tl.float32)
    for first in range(0, T, BT):
        tokens = first + tl.arange(0, BT)
        served = _chosen(selection, tokens, T, L, K, KP) == adapter
        present = tl.max(served.to(tl.int32), axis=1) > 0
        if tl.max(present.to(tl.int32), axis=0) > 0:
            factor = tl.sum(tl.where(served, _shares(weights, tokens, T, K, KP), 0.0), axis=1) * scale
            slot = tl.max(tl.where(served, slots[None, :], 0), axis=1)
            wanted = present[:, None] & (r < rank)[None, :]
            at = tokens.to(tl.int64) * K + slot
            left = tl.load(z + at[:, None] * R + r[None, :], mask=wanted, other=0.0)
            left = tl.where(wanted, left * factor[:, None], 0.0)
            rows = v + tokens.to(tl.int64)[:, None] * stride + columns[None, :]
            right = tl.load(rows, mask=present[:, None] & (columns < d)[None, :], other=0.0)
            if UPCAST:
                right = right.to(tl.float32)
            total = tl.dot(tl.trans(left.to(right.dtype)), right, total, input_precision=PRECISION)
    target = result + (start + r).to(tl.int64)[:, None] * d + columns[None, :]
    tl.store(target, total.to(result.dtype.element_ty), mask=(r < rank)[:, None] & (columns < d)[None, :])
