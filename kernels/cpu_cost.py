"""The CPU's cost model, which chooses the formulation of each shrink and expand.

With n_i slots on adapter i, p adapters present, P slots in all, times in microseconds:

    sampled, bag  fixed + read * sum n_i R_i d            rows read in place, while the adapters
                                                          present fit the cache, else `far` for `read`
    dense         fixed + 2 T N d / rate + read * N d     one product over all adapters
    grouped       fixed + p call + 2 sum n_i R_i d / rate p products on sorted slots, features
                  + read * sum_present R_i d + copy * P d copied group by group

The model reads what the routing selected, not what it could have selected: a concentrated routing is cheaper,
and an adapter of a large rank that few tokens chose costs the others nothing. Over the 62 measured points the
choice takes 1.079 times as long as the fastest of all formulations (geometric mean; docs/kernels.md).

Constants: two threads of an AVX-512 EPYC with avx512_bf16 and 32 MB of L3, torch 2.13, other work between the
calls so that caches are as cold as in a model; d = 1024 to 14336, L = 4 to 128, R = 8 to 64, T = 16 to 512.
bf16 without such arithmetic follows the fp32 constants. Work is divided by the threads in use, overheads are
not. Shapes are those of ``layout.py``.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import Layout
from .routing import Routing
from .slots import Slots

CACHED_ADAPTERS_MB = 18.0
HANDFUL_SLOTS = 8
# Above these, products over all adapters cost more than finding the selected ones.
MASKED_ROWS = 128
MASKED_SHARE = 4
# Microseconds for the indices of the rows, which all pairs need except two products over all adapters.
ROWS = 100


@dataclass(frozen=True, slots=True)
class Work:
    """The work of one shrink or expand under a given routing; MB are 1e6 bytes of W's dtype."""

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
    "sampled": Constants(510, read=40, far=70),
    "dense": Constants(390, rate=78, read=200),
    "grouped": Constants(600, call=24, rate=83, read=225, copy=320),
}
FP32_EXPAND = {
    "bag": Constants(235, read=24, far=50),
    "dense": Constants(230, rate=67, read=260),
    "grouped": Constants(575, call=12, rate=30, read=180, copy=250),
}
BF16_SHRINK = {
    "sampled": Constants(270, read=60, far=60),
    "dense": Constants(395, rate=188, read=56),
    "grouped": Constants(400, call=62, rate=480, read=172, copy=290),
}
BF16_EXPAND = {
    "bag": Constants(180, read=25, far=28),
    "dense": Constants(245, rate=190, read=120),
    "grouped": Constants(380, call=44, rate=250, read=180, copy=260),
}


def is_a_handful(x: Tensor, top_k: int) -> bool:
    """Return whether x [..., h] on a CPU has so few slots that they are best served one by one."""
    return x.is_cpu and 0 < x.numel() * top_k <= HANDFUL_SLOTS * x.shape[-1]


def are_few_adapters(layout: Layout, routing: Routing, dtype: torch.dtype) -> bool:
    """Return whether a forward on a CPU is best served by `routed_masked`, which multiplies every adapter."""
    # bf16 without arithmetic for it multiplies too slowly, and with it is faster by the model's own choice.
    selected = routing.selection.shape[-1] * layout.max_rank
    return dtype == torch.float32 and layout.rows <= min(MASKED_ROWS, MASKED_SHARE * selected)


def cheapest(slots: Slots, features: int, results: int, dtype: torch.dtype) -> tuple[str, str]:
    """Return the names of the cheapest shrink of `features` with expand to `results` features.

    A decision depends on so few numbers of the routing that most are looked up.
    """
    T, k = slots.selection.shape
    return _cheapest(slots.layout, T, k, slots.usage, features, results, dtype, torch.get_num_threads())


@functools.lru_cache(maxsize=65536)
def _cheapest(
    layout: Layout,
    T: int,
    k: int,
    usage: tuple[int, int, int],
    features: int,
    results: int,
    dtype: torch.dtype,
    threads: int,
) -> tuple[str, str]:
    fast_bf16 = _multiplies_bf16(dtype)
    shrinks = _costs(
        BF16_SHRINK if fast_bf16 else FP32_SHRINK, work_of(layout, T, k, usage, features, dtype), threads
    )
    expands = _costs(
        BF16_EXPAND if fast_bf16 else FP32_EXPAND, work_of(layout, T, k, usage, results, dtype), threads
    )

    def cost(pair: tuple[str, str]) -> float:
        return shrinks[pair[0]] + expands[pair[1]] + (0 if pair == ("dense", "dense") else ROWS)

    pairs = itertools.product(shrinks, expands)
    return min((pair for pair in pairs if all(serves(name, dtype) for name in pair)), key=cost)


def _costs(constants: dict[str, Constants], work: Work, threads: int) -> dict[str, float]:
    return {name: FORMULAS[name](of_name, work, float(threads)) for name, of_name in constants.items()}


def serves(name: str, dtype: torch.dtype) -> bool:
    """Return whether a formulation is right for a dtype: fp16 must be widened, group by group."""
    return name == "grouped" or dtype != torch.float16


def work_of(
    layout: Layout, T: int, k: int, usage: tuple[int, int, int], features: int, dtype: torch.dtype
) -> Work:
    """Return what a routing of T tokens and k slots asks of W [N, features]."""
    adapters, slot_rows, adapter_rows = usage
    row_mb = features * dtype.itemsize / 1e6
    return Work(
        adapters=adapters,
        mflop=2e-6 * slot_rows * features,
        slot_mb=slot_rows * row_mb,
        adapter_mb=adapter_rows * row_mb,
        copy_mb=T * k * row_mb,
        dense_mflop=2e-6 * T * layout.rows * features,
        dense_mb=layout.rows * row_mb,
    )


@functools.cache
def _multiplies_bf16(dtype: torch.dtype) -> bool:
    """Return whether `dtype` is bf16 and this CPU has arithmetic for it (AMX or avx512_bf16)."""
    if dtype != torch.bfloat16:
        return False
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, bool)() for name in checks)
