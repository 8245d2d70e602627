"""Which formulation the CPU takes for a shrink or an expand: the one a written cost model calls cheapest.

With n_i slots on adapter i, p adapters present, P slots in all, times in microseconds:

    sampled, bag  fixed + read * sum n_i R_i d            rows read where they lie, while the adapters
                                                          present fit the cache, else `far` for `read`
    dense         fixed + 2 T N d / rate + read * N d     one product over all adapters
    grouped       fixed + p call + 2 sum n_i R_i d / rate p products on sorted slots, features
                  + read * sum_present R_i d + copy * P d copied group by group

What enters is what the routing selected, not what it could have selected: a concentrated routing is
cheaper, and an adapter of a large rank that few tokens chose costs the others nothing.

CONSTANTS_TEXT
Work is divided by the threads in use, overheads are not. Shapes are those of ``layout.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import Layout
from .slots import Slots

CACHED_ADAPTERS_MB = 12.0
HANDFUL_SLOTS = 8
HANDFUL_WIDENED = 131072

# Tokens, slots, adapters present, and the ranks of the slots and of those adapters, each summed.
Usage = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Work:
    """What one shrink or expand has to do under a given routing; MB are 1e6 bytes of W's dtype."""

    adapters: int
    mflop: float
    slot_mb: float
    adapter_mb: float
    copy_mb: float
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


def _rows(c: Constants, w: Work, speed: float) -> float:
    read = c.read if w.adapter_mb <= CACHED_ADAPTERS_MB else c.far
    return c.fixed + read * w.slot_mb / speed


def _dense(c: Constants, w: Work, speed: float) -> float:
    return c.fixed + (1e3 * w.dense_mflop / c.rate + c.read * w.dense_mb) / speed


def _grouped(c: Constants, w: Work, speed: float) -> float:
    work = 1e3 * w.mflop / c.rate + c.read * w.adapter_mb + c.copy * w.copy_mb
    return c.fixed + c.call * w.adapters + work / speed


FORMULAS: dict[str, Callable[[Constants, Work, float], float]] = {
    "sampled": _rows,
    "bag": _rows,
    "dense": _dense,
    "grouped": _grouped,
}
FP32_SHRINK = {
    "sampled": Constants(570, read=42, far=79),
    "dense": Constants(530, rate=62, read=130),
    "grouped": Constants(510, call=25, rate=167, read=144, copy=392),
}
FP32_EXPAND = {
    "bag": Constants(220, read=27, far=55),
    "dense": Constants(320, rate=59, read=169),
    "grouped": Constants(530, call=11, rate=60, read=117, copy=506),
}
BF16_SHRINK = {
    "sampled": Constants(610, read=70, far=104),
    "dense": Constants(920, rate=168, read=58),
    "grouped": Constants(1240, call=110, rate=175, copy=184),
}
BF16_EXPAND = {
    "bag": Constants(290, read=28, far=59),
    "dense": Constants(440, rate=166, read=162),
    "grouped": Constants(1350, call=73, rate=45, read=25),
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
    if x.dtype != torch.bfloat16:
        return True
    rows = sum(map(slots.layout.ranks.__getitem__, slots.named))
    return rows * x.shape[1] <= HANDFUL_WIDENED


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
    names = [name for name in constants if serves(name, dtype)]
    return min(names, key=lambda name: FORMULAS[name](constants[name], work, float(threads)))


def serves(name: str, dtype: torch.dtype) -> bool:
    """Return whether a formulation is right for a dtype: fp16 must be widened, group by group."""
    return name == "grouped" or dtype != torch.float16


def work_of(layout: Layout, features: int, dtype: torch.dtype, usage: Usage) -> Work:
    """Return what a routing asks of W [N, features]."""
    tokens, slots, adapters, slot_rows, adapter_rows = usage
    row_mb = features * dtype.itemsize / 1e6
    return Work(
        adapters=adapters,
        mflop=2e-6 * slot_rows * features,
        slot_mb=slot_rows * row_mb,
        adapter_mb=adapter_rows * row_mb,
        copy_mb=slots * row_mb,
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
