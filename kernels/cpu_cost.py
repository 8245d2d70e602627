"""Which formulation the CPU takes for a shrink or an expand: the one a written cost model calls cheapest.

With P slots, n_i of them on adapter i, p adapters present, times in microseconds:

    views       fixed + P call + read * sum n_i R_i d         one matrix-vector product per slot
    dense       fixed + 2 T N d / rate + read * N d           one product over all adapters
    bag         fixed + read * sum n_i R_i d                  rows added up, while the adapters present
                                                              fit the cache, else `far` for `read`
    grouped     fixed + p call + 2 sum n_i R_i d / rate       p products on sorted slots, features
                + read * sum_present R_i d + copy * P d       copied group by group
    grouped_mm  the same, the loop run inside torch           less per adapter, but all P d copied at
                                                              once: `far` for `copy` beyond the cache

What enters is what the routing selected, not what it could have selected: a concentrated routing is
cheaper, and an adapter of a large rank that few tokens chose costs the others nothing.

Constants: 2 cores of an AVX-512 EPYC with avx512_bf16 and 32 MB of L3, torch 2.13; h = 4096 and 14336,
L = 4 to 128, R = 8 to 64, T = 1 to 4096; fitted to the lower envelope of noisy passes, since a neighbour
only ever adds time. bf16 without such arithmetic follows the fp32 constants. Work is divided by the threads
in use, overheads are not. Shapes are those of ``layout.py``.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .grouped import fits_grouped_mm
from .layout import Layout

CACHED_ADAPTERS_MB = 10.0
CACHED_COPY_MB = 24.0
MEASURED_THREADS = 2
SMALL_SELECTION = 64
HANDFUL_SLOTS = 4
HANDFUL_WIDENED = 65536


@dataclass(frozen=True, slots=True)
class Work:
    """What one shrink or expand has to do under a given selection; MB are 1e6 bytes of W's dtype."""

    tokens: int
    slots: int
    adapters: int
    mflop: float
    slot_mb: float
    adapter_mb: float
    copy_mb: float
    dense_mflop: float
    dense_mb: float


@dataclass(frozen=True, slots=True)
class Constants:
    """Microseconds, microseconds per MB, and GFLOP/s, of one formulation at `MEASURED_THREADS`."""

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
    copy = c.copy if w.copy_mb <= CACHED_COPY_MB else c.far
    work = 1e3 * w.mflop / c.rate + c.read * w.adapter_mb + copy * w.copy_mb
    return c.fixed + c.call * w.adapters + work / speed


FORMULAS: dict[str, Callable[[Constants, Work, float], float]] = {
    "views": _views,
    "dense": _dense,
    "bag": _bag,
    "grouped": _grouped,
    "grouped_mm": _grouped_mm,
}
FP32_SHRINK = {
    "views": Constants(13, call=4, read=58),
    "dense": Constants(25, rate=148, read=58),
    "grouped": Constants(50, call=20, rate=144, read=82, copy=131),
    "grouped_mm": Constants(75, call=9, rate=123, read=59, copy=138, far=480),
}
FP32_EXPAND = {
    "views": Constants(13, call=4.5, read=45),
    "dense": Constants(28, rate=115, read=58),
    "bag": Constants(42, read=14, far=38),
    "grouped": Constants(50, call=15, rate=90, read=100, copy=208),
    "grouped_mm": Constants(110, call=5, rate=70, read=73, copy=116, far=430),
}
BF16_SHRINK = {
    "views": Constants(30, call=38, read=97),
    "dense": Constants(80, rate=390, read=49),
    "grouped": Constants(100, call=58, rate=387, read=137, copy=148),
    "grouped_mm": Constants(140, call=25, rate=348, read=107, copy=132, far=457),
}
BF16_EXPAND = {
    "dense": Constants(66, rate=380, read=75),
    "bag": Constants(40, read=14, far=42),
    "grouped": Constants(105, call=64, rate=187, read=126, copy=194),
    "grouped_mm": Constants(180, call=21, rate=248, read=131, copy=98, far=394),
}


def is_a_handful(x: Tensor, layout: Layout, selection: Tensor) -> bool:
    """Return whether a forward on a CPU is so small that `routed_views` does it in the least operations.

    It widens half types, which costs more than it saves once the adapters are more than a few rows.
    """
    if x.device.type != "cpu" or not 0 < selection.numel() <= HANDFUL_SLOTS:
        return False
    return x.dtype != torch.bfloat16 or layout.max_rank * x.shape[1] <= HANDFUL_WIDENED


def cheapest_shrink(W: Tensor, layout: Layout, selection: Tensor) -> str:
    """Return the name of the cheapest formulation of a shrink of W [N, d] under `selection` [T, k]."""
    return _cheapest(BF16_SHRINK if _multiplies_bf16(W.dtype) else FP32_SHRINK, W, layout, selection)


def cheapest_expand(W: Tensor, layout: Layout, selection: Tensor) -> str:
    """Return the name of the cheapest formulation of an expand by W [N, d] under `selection` [T, k]."""
    return _cheapest(BF16_EXPAND if _multiplies_bf16(W.dtype) else FP32_EXPAND, W, layout, selection)


def _cheapest(constants: dict[str, Constants], W: Tensor, layout: Layout, selection: Tensor) -> str:
    work = work_of(W, layout, selection)
    speed = torch.get_num_threads() / MEASURED_THREADS
    names = [name for name in constants if serves(name, W, layout)]
    return min(names, key=lambda name: FORMULAS[name](constants[name], work, speed))


def serves(name: str, W: Tensor, layout: Layout) -> bool:
    """Return whether a formulation is right for W: fp16 must be widened, which two of them do."""
    if W.dtype == torch.float16:
        return name in ("views", "grouped")
    return name != "grouped_mm" or fits_grouped_mm(W, layout)


def work_of(W: Tensor, layout: Layout, selection: Tensor) -> Work:
    """Return what `selection` [T, k] asks of W [N, d]."""
    slots_of = _slots_per_adapter(layout, selection)
    slot_rows = sum(count * layout.ranks[i] for i, count in slots_of.items())
    adapter_rows = sum(layout.ranks[i] for i in slots_of)
    tokens, slots = selection.shape[0], selection.numel()
    d = W.shape[1]
    row_mb = d * W.element_size() / 1e6
    return Work(
        tokens=tokens,
        slots=slots,
        adapters=len(slots_of),
        mflop=2e-6 * slot_rows * d,
        slot_mb=slot_rows * row_mb,
        adapter_mb=adapter_rows * row_mb,
        copy_mb=slots * row_mb,
        dense_mflop=2e-6 * tokens * layout.rows * d,
        dense_mb=layout.rows * row_mb,
    )


def _slots_per_adapter(layout: Layout, selection: Tensor) -> dict[int, int]:
    if selection.numel() <= SMALL_SELECTION:
        return dict(Counter(selection.flatten().tolist()))
    counts = torch.bincount(selection.flatten(), minlength=layout.adapters).tolist()
    return {i: count for i, count in enumerate(counts) if count}


@functools.cache
def _multiplies_bf16(dtype: torch.dtype) -> bool:
    """Return whether `dtype` is bf16 and this CPU has arithmetic for it (AMX or avx512_bf16)."""
    if dtype != torch.bfloat16:
        return False
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, bool)() for name in checks)
