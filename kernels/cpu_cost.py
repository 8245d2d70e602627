"""Which formulation the CPU takes for a shrink or an expand: the one a written cost model calls cheapest.

With P slots, n_i of them on adapter i, p adapters present, times in microseconds:

    views       fixed + P call + read * sum n_i R_i d         one matrix-vector product per slot
    dense       fixed + 2 T N d / rate + read * N d           one product over all adapters
    bag         fixed + read * sum n_i R_i d                  rows added up, while the adapters present
                                                              fit the cache, else `far` for `read`
    grouped     fixed + p call + 2 sum n_i R_i d / rate       p products on sorted slots, features
                + read * sum_present R_i d + copy * P d       copied group by group
    grouped_mm  the same, the loop run inside torch, over     less per adapter, but all the blocks'
                blocks of the rank g that divides all ranks   features copied at once: sum n_i R_i / g d,
                                                              `far` for `copy` beyond the cache

What enters is what the routing selected, not what it could have selected: a concentrated routing is
cheaper, and an adapter of a large rank that few tokens chose costs the others nothing.

Constants: one thread of an AVX-512 EPYC with avx512_bf16 and 32 MB of L3, torch 2.13, in processor time;
d = 4096 and 14336, L = 4 to 128, R = 8 to 64, T = 1 to 1024. With them the formulation taken costs 1 to 4 %
more than the best measured one, in geometric mean. bf16 without such arithmetic follows the fp32 constants.
Work is divided by the threads in use, overheads are not. Shapes are those of ``layout.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .grouped import fits_grouped_mm
from .layout import Layout
from .slots import Slots

CACHED_ADAPTERS_MB = 10.0
CACHED_COPY_MB = 24.0
HANDFUL_SLOTS = 4
HANDFUL_WIDENED = 131072


# Tokens, slots, adapters present, and the ranks of the slots and of those adapters, each summed.
Usage = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Work:
    """What one shrink or expand has to do under a given routing; MB are 1e6 bytes of W's dtype."""

    slots: int
    adapters: int
    mflop: float
    slot_mb: float
    adapter_mb: float
    copy_mb: float
    block_copy_mb: float
    dense_mflop: float
    dense_mb: float


@dataclass(frozen=True, slots=True)
class Constants:
    """Microseconds, microseconds per MB, and GFLOP/s, of one formulation on one thread."""

    fixed: float
    call: float = 0.0
    rate: float = 1.0
    read: float = 0.0
    copy: float = 0.0
    far: float = 0.0


def _views(c: Constants, w: Work, speed: float) -> float:
    return c.fixed + c.call * w.slots + c.read * w.slot_mb / speed


def _dense(c: Constants, w: Work, speed: float) -> float:
    return c.fixed + (1e3 * w.dense_mflop / c.rate + c.read * w.dense_mb) / speed


def _bag(c: Constants, w: Work, speed: float) -> float:
    read = c.read if w.adapter_mb <= CACHED_ADAPTERS_MB else c.far
    return c.fixed + read * w.slot_mb / speed


def _grouped(c: Constants, w: Work, speed: float) -> float:
    work = 1e3 * w.mflop / c.rate + c.read * w.adapter_mb + c.copy * w.copy_mb
    return c.fixed + c.call * w.adapters + work / speed


def _grouped_mm(c: Constants, w: Work, speed: float) -> float:
    copy = c.copy if w.block_copy_mb <= CACHED_COPY_MB else c.far
    work = 1e3 * w.mflop / c.rate + c.read * w.adapter_mb + copy * w.block_copy_mb
    return c.fixed + c.call * w.adapters + work / speed


FORMULAS: dict[str, Callable[[Constants, Work, float], float]] = {
    "views": _views,
    "dense": _dense,
    "bag": _bag,
    "grouped": _grouped,
    "grouped_mm": _grouped_mm,
}
FP32_SHRINK = {
    "views": Constants(17, call=9, read=63),
    "dense": Constants(30, rate=75, read=67),
    "grouped": Constants(115, call=20, rate=94, read=88, copy=198),
    "grouped_mm": Constants(60, call=1, rate=82, read=72, copy=229, far=817),
}
FP32_EXPAND = {
    "views": Constants(15, call=5, read=50),
    "dense": Constants(45, rate=67, read=67),
    "bag": Constants(40, read=21, far=63),
    "grouped": Constants(128, call=20, rate=62, read=90, copy=199),
    "grouped_mm": Constants(172, call=1, rate=65, read=69, copy=162, far=697),
}
BF16_SHRINK = {
    "views": Constants(31, call=32, read=145),
    "dense": Constants(93, rate=195, read=75),
    "grouped": Constants(190, call=68, rate=353, read=115, copy=235),
    "grouped_mm": Constants(222, call=23, rate=341, read=100, copy=253, far=527),
}
BF16_EXPAND = {
    "dense": Constants(95, rate=191, read=135),
    "bag": Constants(55, read=25, far=68),
    "grouped": Constants(163, call=68, rate=185, read=196, copy=525),
    "grouped_mm": Constants(210, call=24, rate=203, read=168, copy=189, far=427),
}


CONSTANTS = {
    ("shrink", False): FP32_SHRINK,
    ("shrink", True): BF16_SHRINK,
    ("expand", False): FP32_EXPAND,
    ("expand", True): BF16_EXPAND,
}


def is_a_handful(x: Tensor, slots: Slots) -> bool:
    """Return whether a forward on a CPU is so small that `routed_views` does it in the least operations.

    It widens half types, which costs more than it saves once the adapters selected are more than a few rows.
    """
    if slots.selection.numel() > HANDFUL_SLOTS:
        return False
    ranks = slots.layout.ranks
    rows = sum(count * ranks[i] for i, count in slots.counts.items())
    return x.dtype != torch.bfloat16 or rows * x.shape[1] <= HANDFUL_WIDENED


def cheapest_shrink(W: Tensor, slots: Slots) -> str:
    """Return the name of the cheapest formulation of a shrink of W [N, d]."""
    return _cheapest("shrink", slots.layout, W.shape[1], W.dtype, _usage(slots), torch.get_num_threads())


def cheapest_expand(W: Tensor, slots: Slots) -> str:
    """Return the name of the cheapest formulation of an expand by W [N, d]."""
    return _cheapest("expand", slots.layout, W.shape[1], W.dtype, _usage(slots), torch.get_num_threads())


def _usage(slots: Slots) -> Usage:
    """Return what of a routing enters the model: few enough numbers that most decisions are looked up."""
    ranks, counts = slots.layout.ranks, slots.counts
    T, k = slots.selection.shape
    slot_rows = sum(count * ranks[i] for i, count in counts.items())
    return T, T * k, len(counts), slot_rows, sum(ranks[i] for i in counts)


@functools.lru_cache(maxsize=65536)
def _cheapest(
    product: str, layout: Layout, features: int, dtype: torch.dtype, usage: Usage, threads: int
) -> str:
    constants = CONSTANTS[product, _multiplies_bf16(dtype)]
    work = work_of(layout, features, dtype, usage)
    names = [name for name in constants if serves(name, layout, features, dtype)]
    return min(names, key=lambda name: FORMULAS[name](constants[name], work, float(threads)))


def serves(name: str, layout: Layout, features: int, dtype: torch.dtype) -> bool:
    """Return whether a formulation is right for W [N, features]: fp16 must be widened, which few do."""
    if dtype == torch.float16:
        return name in ("views", "grouped")
    return name != "grouped_mm" or fits_grouped_mm(layout.block_rank, features, dtype)


def work_of(layout: Layout, features: int, dtype: torch.dtype, usage: Usage) -> Work:
    """Return what a routing asks of W [N, features]."""
    tokens, slots, adapters, slot_rows, adapter_rows = usage
    row_mb = features * dtype.itemsize / 1e6
    return Work(
        slots=slots,
        adapters=adapters,
        mflop=2e-6 * slot_rows * features,
        slot_mb=slot_rows * row_mb,
        adapter_mb=adapter_rows * row_mb,
        copy_mb=slots * row_mb,
        block_copy_mb=slot_rows / max(1, layout.block_rank) * row_mb,
        dense_mflop=2e-6 * tokens * layout.rows * features,
        dense_mb=layout.rows * row_mb,
    )


@functools.cache
def _multiplies_bf16(dtype: torch.dtype) -> bool:
    """Return whether `dtype` is bf16 and this CPU has arithmetic for it (AMX or avx512_bf16)."""
    if dtype != torch.bfloat16:
        return False
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, bool)() for name in checks)
