"""The measurement of block sizes on this GPU: ``python -m meteora_registry.kernels.gpu_tune [TABLE]``.

For each kernel and bucket of tokens, rows are compared with the float64 reference and timed in bf16 over a
linear 4096 x 4096 with 28 adapters of rank 8 and of rank 64, as CUDA graphs of several calls with factors of
their own. The search starts from the present row: it tries every other value of each field alone, then the
best of all fields together, and does so again from the best row found, so that some thirty rows are tried
where there are hundreds. The rows of a round are compiled in parallel, in processes of their own. The table
(``gpu_table.json`` beside this module, unless a path is given) is written after each bucket, and the search
ends after `--minutes`: what was found by then stays. Once per architecture, never while a model runs.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import gpu_launch, gpu_products, gpu_table
from .gpu_graph import captured
from .gpu_table import INTERPRETED, TABLE, Blocks, architecture, blocks_for, read_table
from .layout import Layout, layout_of
from .reference import TOLERANCES, reference_routed_lora, relative_error
from .routing import Gate, Routing

# The kernels worth tuning, with the fields of a row that they read; the others take microseconds with any
# row.
TUNED: dict[str, dict[str, tuple[int, ...]]] = {
    "shrink": {
        "tokens": (16, 32, 64, 128),
        "rank": (16, 32, 64),
        "bytes": (128, 256),
        "programs": (132, 264, 528),
    },
    "expand": {"tokens": (16, 32, 64, 128), "rank": (16, 32, 64), "features": (64, 128, 256)},
    "project": {"tokens": (16, 32, 64), "rank": (16, 32), "bytes": (128, 256), "programs": (132, 264, 528)},
}
LAUNCHES: dict[str, tuple[int, ...]] = {"warps": (4, 8), "stages": (2, 3, 4)}
BUCKETS: tuple[int | None, ...] = (16, 64, 1024, None)
MOST_TOKENS = 4096
RANKS = (8, 64)
ADAPTERS, FEATURES, TOP_K = 28, 4096, 2
CHECKED_TOKENS = 8
ROUNDS = 2
MINUTES = 5.0
# Calls in a graph, and replays of it, for few tokens and for many.
FEW_TOKENS, FEW_CALLS, MANY_CALLS, REPLAYS = 64, 16, 4, 7
MOST_WORKERS = 12


class Case:
    """One linear under one routing, with factors for several calls and the reference of its first tokens."""

    def __init__(self, tokens: int, rank: int, *, device: str = "cuda", features: int = FEATURES) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, generator=generator) * scale).to(device, torch.bfloat16)

        self.layout: Layout = layout_of(range(0, (ADAPTERS + 1) * rank, rank), [2.0] * ADAPTERS)
        self.x = normal(tokens, features)
        self.A = normal(self.layout.rows, features, scale=features**-0.5)
        self.Bt = normal(self.layout.rows, features)
        weight = torch.randn(ADAPTERS, features, generator=generator).to(device)
        self.gate = Gate(weight, None, "linear", TOP_K)
        self.routing: Routing = self.gate.route(self.x)
        self.out = torch.zeros_like(self.x)
        self.expected = reference_routed_lora(
            self.x[:CHECKED_TOKENS],
            self.A,
            self.Bt,
            self.layout.offsets,
            self.layout.scaling,
            self.routing.selection[:CHECKED_TOKENS],
            self.routing.weights[:CHECKED_TOKENS],
        )

    def run(self, kernel: str, factors: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return the output of the launches that hold `kernel`, whatever a call of that size would take."""
        A, Bt = factors or (self.A, self.Bt)
        self.out.zero_()
        if kernel == "project" and self._is_fused():
            gpu_launch.gated(self.x, A, Bt, self.layout, self.gate, self.out)
            return self.out
        routing = self.routing
        if kernel == "project":
            routing = gpu_launch.route(self.x, self.layout, self.gate)
        gpu_launch.routed(self.x, A, Bt, self.layout, routing, self.out, add=False)
        return self.out

    def _is_fused(self) -> bool:
        return self.x.shape[0] <= gpu_products.FEW_TOKENS and self.layout.rows <= gpu_products.GATED_ROWS

    def is_right(self, kernel: str) -> bool:
        """Return whether the output agrees with the reference."""
        error = relative_error(self.run(kernel)[:CHECKED_TOKENS], self.expected)
        return error <= TOLERANCES[torch.bfloat16]

    def milliseconds(self, kernel: str) -> float:
        """Return the median time of a call on the GPU, among calls whose factors are not in its caches."""
        calls = FEW_CALLS if self.x.shape[0] <= FEW_TOKENS else MANY_CALLS
        sets = [(self.A.clone(), self.Bt.clone()) for _ in range(calls)]
        runs = [functools.partial(self.run, kernel, factors) for factors in sets]
        if not self.x.is_cuda:
            return timed(runs[0])
        replay = captured(runs)
        replay()
        return statistics.median(timed_on_gpu(replay) for _ in range(REPLAYS)) / calls


def timed(call: Callable[[], object]) -> float:
    """Return the milliseconds of one call on the CPU."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def timed_on_gpu(call: Callable[[], object]) -> float:
    """Return the GPU's milliseconds of one call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


@contextmanager
def using(kernel: str, row: Blocks) -> Iterator[None]:
    """Make the launches of one kernel take `row`."""
    kept = dict(gpu_table.OVERRIDES)
    gpu_table.OVERRIDES[kernel] = row
    try:
        yield
    finally:
        gpu_table.OVERRIDES.clear()
        gpu_table.OVERRIDES.update(kept)


def neighbours(kernel: str, base: Blocks, tokens: int) -> list[Blocks]:
    """Return the rows that differ from `base` in one field that the kernel reads."""
    rows = []
    for field, values in {**TUNED[kernel], **LAUNCHES}.items():
        for value in values:
            row = replace(base, **{field: value})
            if row != base and row.tokens <= max(16, 2 * tokens):
                rows.append(row)
    return rows


def combined(base: Blocks, times: dict[Blocks, float]) -> Blocks:
    """Return `base` with each field's value that was the fastest on its own, where faster than `base`."""
    best: dict[str, tuple[float, int]] = {}
    for row, milliseconds in times.items():
        changed = [name for name, value in asdict(row).items() if value != getattr(base, name)]
        if len(changed) == 1 and milliseconds < times[base]:
            found = milliseconds, getattr(row, changed[0])
            best[changed[0]] = min(best.get(changed[0], found), found)
    return replace(base, **{field: value for field, (_, value) in best.items()})


class Search:
    """The search for the fastest rows, until a deadline.

    Args:
        cases: returns the cases of one bucket's number of tokens.
        compile_all: compiles a kernel with several rows for a number of tokens.
        end: the time, by `time.monotonic`, after which nothing more is tried.
    """

    def __init__(
        self,
        cases: Callable[[int], list[Case]],
        compile_all: Callable[[str, int, Iterable[Blocks]], None],
        end: float,
    ) -> None:
        self._cases, self._compile_all, self._end = cases, compile_all, end

    def has_time(self) -> bool:
        """Return whether the deadline is ahead."""
        return time.monotonic() < self._end

    def fastest(self, kernel: str, limit: int | None) -> Blocks | None:
        """Return the fastest right row of one bucket; None where there was no time to compare any."""
        tokens = limit or MOST_TOKENS
        cases = self._cases(tokens)
        best = blocks_for(kernel, tokens, cases[0].x.device, torch.bfloat16)
        times: dict[Blocks, float] = {}
        for _ in range(ROUNDS):
            base = best
            self._try(kernel, [base, *neighbours(kernel, base, tokens)], cases, times)
            if base in times:
                self._try(kernel, [combined(base, times)], cases, times)
            if not times:
                return None
            best = min(times, key=lambda row: times[row])
            if best == base:
                break
        print(  # noqa: T201 - a command's progress
            f"{kernel} up to {limit} tokens: {times[best]:.4f} ms of {len(times)} rows, {best}",
            file=sys.stderr,
            flush=True,
        )
        return best if times[best] < math.inf else None

    def _try(self, kernel: str, rows: list[Blocks], cases: list[Case], times: dict[Blocks, float]) -> None:
        new = [row for row in rows if row not in times and self.has_time()]
        self._compile_all(kernel, cases[0].x.shape[0], new)
        for row in new:
            if self.has_time():
                times[row] = time_of(kernel, row, cases)


def time_of(kernel: str, row: Blocks, cases: list[Case]) -> float:
    """Return the milliseconds of all cases, infinite where the row cannot run here or is wrong."""
    from triton.errors import TritonError  # type: ignore[import-untyped]

    with using(kernel, row):
        try:
            if not all(case.is_right(kernel) for case in cases):
                return math.inf
            return sum(case.milliseconds(kernel) for case in cases)
        except TritonError:
            return math.inf


@functools.cache
def cases_of(tokens: int, device: str = "cuda", features: int = FEATURES) -> list[Case]:
    """Return the cases of a number of tokens."""
    return [Case(tokens, rank, device=device, features=features) for rank in RANKS]


def compile_row(kernel: str, tokens: int, row: Blocks) -> None:
    """Call a kernel once, so that Triton's cache on disk has its binary; in a process of its own."""
    with using(kernel, row):
        for case in cases_of(tokens):
            case.run(kernel)


def compile_nothing(kernel: str, tokens: int, rows: Iterable[Blocks]) -> None:
    """Leave every row to be compiled where it is tried."""


class Compilers:
    """Processes that compile rows beside one another."""

    def __init__(self, pool: ProcessPoolExecutor, end: float) -> None:
        self._pool, self._end = pool, end

    def __call__(self, kernel: str, tokens: int, rows: Iterable[Blocks]) -> None:
        """Return when all rows are compiled, or failed to: they will fail again where they are tried."""
        try:
            jobs = [self._pool.submit(compile_row, kernel, tokens, row) for row in rows]
        except BrokenExecutor:
            # A process died of a row; each is compiled where it is tried.
            return
        for job in jobs:
            try:
                job.exception(timeout=max(0.0, self._end - time.monotonic()))
            except TimeoutError:
                job.cancel()


def tuned_buckets(search: Search) -> Iterator[tuple[str, int | None, Blocks]]:
    """Yield each kernel, bucket and its fastest row: decoding first, then many tokens."""
    for limit in (BUCKETS[0], BUCKETS[-1], *BUCKETS[1:-1]):
        for kernel in TUNED:
            row = search.fastest(kernel, limit) if search.has_time() else None
            if row is not None:
                yield kernel, limit, row


def with_row(rows: list[dict[str, Any]], kernel: str, limit: int | None, row: Blocks) -> list[dict[str, Any]]:
    """Return a kernel's rows, one for each bucket, with one of them replaced."""

    def of(bucket: int | None) -> dict[str, Any]:
        found = next(r for r in rows if r["max_tokens"] is None or (bucket or math.inf) <= r["max_tokens"])
        return {**found, "max_tokens": bucket}

    read = {*TUNED[kernel], *LAUNCHES}
    chosen = {name: value for name, value in asdict(row).items() if name in read}
    return [{**of(bucket), **chosen} if bucket == limit else of(bucket) for bucket in BUCKETS]


def tune(search: Search, key: str, path: Path) -> int:
    """Write each bucket's row into the table at `path` when it is found; return how many there were."""
    table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else read_table()
    found = 0
    for kernel, limit, row in tuned_buckets(search):
        rows = table.get(key, {}).get(kernel) or table["default"][kernel]
        table[key] = {**table.get(key, {}), kernel: with_row(rows, kernel, limit, row)}
        # The kernels run where the rest of the package is not installed, so they write by themselves.
        scratch = path.with_name(f"{path.name}-unfinished")
        scratch.write_text(formatted(table), encoding="utf-8")
        scratch.replace(path)
        found += 1
    return found


def formatted(table: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Return the table as it is kept: one line per row, so that a difference reads as one."""
    architectures = []
    for name, kernels in table.items():
        parts = []
        for kernel, rows in kernels.items():
            lines = ",\n".join(f"      {json.dumps(row)}" for row in rows)
            parts.append(f'    "{kernel}": [\n{lines}\n    ]')
        architectures.append(f'  "{name}": {{\n' + ",\n".join(parts) + "\n  }")
    return "{\n" + ",\n".join(architectures) + "\n}\n"


def main(arguments: list[str]) -> int:
    """Tune and write the table; 1 without a GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m meteora_registry.kernels.gpu_tune", description="Measure block sizes on this GPU."
    )
    parser.add_argument("table", nargs="?", type=Path, default=TABLE, help="write this file")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="try nothing more after this time")
    parser.add_argument(
        "--interpreted", action="store_true", help="rehearse in Triton's interpreter, at small sizes"
    )
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    if options.interpreted:
        return _rehearse(options.table, end)
    if not torch.cuda.is_available():
        print("there is no GPU to measure on", file=sys.stderr)  # noqa: T201 - a command's message
        return 1
    workers = min(MOST_WORKERS, max(1, (os.cpu_count() or 2) - 2))
    # Spawned: a fork of a process that uses CUDA cannot use it.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        search = Search(cases_of, Compilers(pool, end), end)
        key = architecture(torch.device("cuda", torch.cuda.current_device()))
        return 0 if tune(search, key, options.table) else 1
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _rehearse(path: Path, end: float) -> int:
    """Go through the search where there is no GPU: it times the interpreter, its rows mean nothing."""
    if not INTERPRETED:
        print("`--interpreted` needs `TRITON_INTERPRET=1` in the environment", file=sys.stderr)  # noqa: T201
        return 2
    search = Search(lambda tokens: cases_of(min(tokens, 2 * CHECKED_TOKENS), "cpu", 64), compile_nothing, end)
    return 0 if tune(search, "interpreter", path) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
