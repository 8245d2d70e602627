"""Timings that can be compared: variants interleaved in one process, quantiles of single calls.

A neighbour on the machine slows the variant that runs at that moment, so times of different passes may differ
by several times. Interleaved, every variant meets the same neighbours, and the ratio within a pass holds.
"""

from __future__ import annotations

import functools
import random
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WARM_UP_CALLS = 2
LEAST_ROUNDS = 5
MOST_ROUNDS = 200
# Larger than any L2: written between two calls, so that each finds its operands in memory as a model's
# forward would.
FLUSH_BYTES = 256 * 2**20

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Quantiles of one variant's calls, in milliseconds, and how many calls there were."""

    p20: float
    p50: float
    p80: float
    calls: int


def interleaved(
    variants: Mapping[str, Call], *, device: str, seconds: float, calls: int = 1
) -> dict[str, Quantiles]:
    """Return each variant's quantiles after taking turns for about `seconds` in all, five turns at least.

    Where a variant makes several calls in one, `calls`, times are those of a single one.
    """
    one_call = timed_on_gpu if device == "cuda" else timed
    for call in variants.values():
        for _ in range(WARM_UP_CALLS):
            call()
    times: dict[str, list[float]] = {name: [] for name in variants}
    turns, order = list(variants.items()), random.Random(0)
    deadline = time.perf_counter() + seconds
    for turn in range(MOST_ROUNDS):
        # Another order each turn: who runs after whom decides what is in the caches.
        order.shuffle(turns)
        for name, call in turns:
            times[name].append(one_call(call) / calls)
        if turn + 1 >= LEAST_ROUNDS and time.perf_counter() > deadline:
            break
    return {name: quantiles(values) for name, values in times.items()}


def quantiles(milliseconds: list[float]) -> Quantiles:
    """Return the quantiles of measured calls."""
    values = sorted(milliseconds)
    p20, p50, p80 = (values[min(len(values) - 1, int(share * len(values)))] for share in (0.2, 0.5, 0.8))
    return Quantiles(p20, p50, p80, len(values))


def timed(call: Call) -> float:
    """Return the milliseconds of one call on the CPU."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


@functools.cache
def flush_buffer() -> torch.Tensor:
    """Return memory to write between calls."""
    return torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")


def timed_on_gpu(call: Call) -> float:
    """Return the GPU's milliseconds of one call, its caches flushed before."""
    flush_buffer().zero_()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def peak_megabytes(call: Call, *, device: str) -> float:
    """Return the most memory that the call's own tensors held at one time, in MB of 1e6 bytes."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with LiveBytes() as live:
        call()
    return live.peak / 1e6


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operators return, while they live.

    What an operator allocates and frees inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.owners: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        known = {storage_of(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf, is_new=storage_of(leaf) not in known)
        return result

    def _add(self, tensor: torch.Tensor, *, is_new: bool) -> None:
        key, size = storage_of(tensor), tensor.untyped_storage().nbytes()
        if key in self.owners:
            self.owners[key] += 1
        elif is_new and size:
            self.owners[key] = 1
            self.now += size
            self.peak = max(self.peak, self.now)
        else:
            return
        weakref.finalize(tensor, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self.owners[key] -= 1
        if not self.owners[key]:
            del self.owners[key]
            self.now -= size


def storage_of(tensor: torch.Tensor) -> int:
    """Return what identifies a tensor's storage while it lives."""
    return tensor.untyped_storage().data_ptr()
