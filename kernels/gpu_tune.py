"""The measurement of block sizes on this GPU: ``python -m meteora_registry.kernels.gpu_tune [TABLE]``.

For each kernel and bucket of tokens every candidate row is first compared with the float64 reference, then
timed in bf16 over a linear 4096 x 4096 with 28 adapters of rank 8 and of rank 64, caches flushed between
calls; the fastest becomes the row of this architecture in the table (``gpu_table.json`` beside this module,
unless a path is given). Minutes, once per architecture, never while a model runs.
"""

from __future__ import annotations

import functools
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import gpu_launch, gpu_products, gpu_table
from .gpu_table import TABLE, Blocks, architecture, blocks_for, read_table
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
CALLS = 20
FLUSH_BYTES = 256 * 2**20


class Case:
    """One linear under one routing, with the reference of its first tokens."""

    def __init__(self, tokens: int, rank: int) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, generator=generator) * scale).to("cuda", torch.bfloat16)

        self.layout: Layout = layout_of(range(0, (ADAPTERS + 1) * rank, rank), [2.0] * ADAPTERS)
        self.x = normal(tokens, FEATURES)
        self.A = normal(self.layout.rows, FEATURES, scale=FEATURES**-0.5)
        self.Bt = normal(self.layout.rows, FEATURES)
        weight = torch.randn(ADAPTERS, FEATURES, generator=generator).cuda()
        self.gate = Gate(weight, None, "linear", TOP_K)
        self.routing: Routing = self.gate.route(self.x)
        self.expected = reference_routed_lora(
            self.x[:CHECKED_TOKENS],
            self.A,
            self.Bt,
            self.layout.offsets,
            self.layout.scaling,
            self.routing.selection[:CHECKED_TOKENS],
            self.routing.weights[:CHECKED_TOKENS],
        )

    def run(self, kernel: str) -> Tensor:
        """Return the output of the path that holds `kernel`."""
        if kernel == "project":
            out = torch.zeros_like(self.x)
            gpu_products.gated_forward(self.x, self.A, self.Bt, self.layout, self.gate, out)
            return out
        planes = gpu_launch.shrink(self.x, self.A, self.layout, self.routing.selection)
        out = torch.empty_like(self.x)
        gpu_launch.expand(planes, self.Bt, self.layout, self.routing, out, add=False)
        return out

    def is_right(self, kernel: str) -> bool:
        """Return whether the output agrees with the reference."""
        error = relative_error(self.run(kernel)[:CHECKED_TOKENS], self.expected)
        return error <= TOLERANCES[torch.bfloat16]


def candidates(kernel: str, base: Blocks, tokens: int) -> Iterator[Blocks]:
    """Yield the rows to try: every combination of what the kernel reads, no tile far above the tokens."""
    choices = {**TUNED[kernel], **LAUNCHES}
    for values in itertools.product(*choices.values()):
        row = replace(base, **dict(zip(choices, values, strict=True)))
        if row.tokens <= max(16, 2 * tokens):
            yield row


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


def milliseconds(call: Callable[[], object]) -> float:
    """Return the median time of a call on the GPU, caches flushed before each."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    times = []
    for _ in range(CALLS):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return float(statistics.median(times))


def fastest(kernel: str, limit: int | None) -> Blocks:
    """Return the fastest right row of one bucket; the present one if no other is right."""
    tokens = limit or MOST_TOKENS
    cases = [Case(tokens, rank) for rank in RANKS]
    best = blocks_for(kernel, tokens, cases[0].x.device, torch.bfloat16)
    best_time = float("inf")
    for row in candidates(kernel, best, tokens):
        time = time_of(kernel, row, cases)
        if time < best_time:
            best, best_time = row, time
    print(f"{kernel} up to {limit} tokens: {best_time:.3f} ms, {best}", file=sys.stderr, flush=True)  # noqa: T201 - a command's progress
    return best


def time_of(kernel: str, row: Blocks, cases: list[Case]) -> float:
    """Return the milliseconds of all cases, infinite where the row does not fit the GPU or is wrong."""
    from triton.runtime.errors import OutOfResources  # type: ignore[import-untyped]

    with using(kernel, row):
        try:
            if not all(case.is_right(kernel) for case in cases):
                return float("inf")
            return sum(milliseconds(functools.partial(case.run, kernel)) for case in cases)
        except OutOfResources:
            return float("inf")


def rows_of_this_machine() -> dict[str, list[dict[str, Any]]]:
    """Return the tuned rows of every kernel, by bucket."""
    return {
        kernel: [{"max_tokens": limit, **asdict(fastest(kernel, limit))} for limit in BUCKETS]
        for kernel in TUNED
    }


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
    if not torch.cuda.is_available():
        print("there is no GPU to measure on", file=sys.stderr)  # noqa: T201 - a command's message
        return 1
    path = Path(arguments[0]) if arguments else TABLE
    table = read_table()
    key = architecture(torch.device("cuda", torch.cuda.current_device()))
    table[key] = {**table.get(key, {}), **rows_of_this_machine()}
    path.write_text(formatted(table), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
