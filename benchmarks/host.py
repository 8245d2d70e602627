"""The host's time for a call of the kernels: ``python -m benchmarks.run host --form TEXT [--out FILE]``.

Eager decoding of Llama-3-8B calls `gated_lora_` 224 times for each token, so that the host's microseconds
decide how fast it is. No GPU is needed or used: the operands are on the CPU, the kernels are compiled
for sm90, and Triton's launcher, its last step before the driver, does nothing. In one pass these take turns:

    call      the public function with Triton's own path to the launcher: binding, its cache, the arguments
    own       the same where a launch of Triton does nothing at all: what this library spends
    buffers   of these, the call's buffers, which CPU and GPU allocate at different costs
    scale     eight calls of `triton.cdiv`, which a linear made before plans were kept, to compare machines by

The difference of the first two is what Triton's launches cost the host. The driver's step is in neither.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from benchmarks import machine
from benchmarks.pages import Row, read_rows, with_section, write_row
from meteora_registry.kernels import gpu_launch, gpu_products, gpu_table, operators
from meteora_registry.kernels.routed_lora import gated_lora_, routed_lora_
from meteora_registry.kernels.routing import Gate

KERNELS = ("shrink", "expand", "project", "route", "spread", "outer")
ROUNDS = 40
CALLS = 50
# Below the dense branch, whose products a CPU would compute.
TOKENS = (1, 4)
ROWS = Path(__file__).parent / "results" / "host.jsonl"
PAGE = Path(__file__).parent.parent / "docs" / "kernels.md"
START, END = "<!-- host: written by benchmarks.host -->", "<!-- end of host -->"
PARTS = ("call", "own", "buffers")
# The aim, and what `scale` was on the machine where it was set.
GOAL, GOAL_SCALE = 15, 15.4
MEMBERS, RANK, FEATURES, TOP_K = 28, 8, 4096, 2

Call = Callable[[], object]


def main(arguments: list[str]) -> None:
    """Measure and write one line of JSON per row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run host", description=__doc__)
    parser.add_argument("--form", default="plans", help="what of the code was measured, kept in each row")
    parser.add_argument("--page", action="store_true", help="write the committed rows into docs/kernels.md")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="passes over the calls")
    parser.add_argument("--out", type=Path, help="append the rows to this file")
    options = parser.parse_args(arguments)
    if options.page:
        PAGE.write_text(page_of(PAGE.read_text(encoding="utf-8"), read_rows(ROWS)), encoding="utf-8")
        return
    torch.set_num_threads(1)
    described = machine.description("cpu")
    for row in measure(options.rounds):
        write_row({"subject": "host", "form": options.form, **row, **described}, options.out)


def measure(rounds: int) -> Iterator[Row]:
    """Yield one row for each operator and number of tokens."""
    with torch.inference_mode(), without_a_gpu():
        calls = {(name, tokens): call for tokens in TOKENS for name, call in calls_of(tokens).items()}
        buffers = {key: buffers_of(call) for key, call in calls.items()}
        times: dict[tuple[str, int, str], list[float]] = {
            (*key, part): [] for key, part in itertools.product(calls, PARTS)
        }
        scale: list[float] = []
        for _ in range(rounds):
            scale.append(microseconds(eight_quotients))
            for key, call in calls.items():
                times[*key, "call"].append(microseconds(call))
                with no_launches():
                    times[*key, "own"].append(microseconds(call))
                times[*key, "buffers"].append(microseconds(buffers[key]))
    for name, tokens in calls:
        found = {part: statistics.median(times[name, tokens, part]) for part in PARTS}
        yield {
            "operator": name,
            "T": tokens,
            "unit": "us",
            **{part: round(value, 2) for part, value in found.items()},
            "launches": round(found["call"] - found["own"], 2),
            "least_own": round(min(times[name, tokens, "own"]), 2),
            "scale": round(statistics.median(scale), 2),
            "least_scale": round(min(scale), 2),
            "calls": rounds * CALLS,
        }


def calls_of(tokens: int) -> dict[str, Call]:
    """Return both operators of one linear 4096 x 4096 with 28 members of rank 8, bf16."""

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(*shape, dtype=dtype).normal_(0, 0.02)

    # Lists, as a caller may pass them.
    offsets, scaling = list(range(0, (MEMBERS + 1) * RANK, RANK)), [2.0] * MEMBERS
    x, out = normal(tokens, FEATURES), normal(tokens, FEATURES)
    A, Bt = normal(MEMBERS * RANK, FEATURES), normal(MEMBERS * RANK, FEATURES)
    gate = Gate(normal(MEMBERS, FEATURES, dtype=torch.float32), None, "linear", TOP_K)
    selection = torch.arange(TOP_K).expand(tokens, TOP_K).contiguous()
    weights = torch.full((tokens, TOP_K), 0.5)
    return {
        "gated_lora_": lambda: gated_lora_(out, x, A, Bt, offsets, scaling, gate),
        "routed_lora_": lambda: routed_lora_(out, x, A, Bt, offsets, scaling, selection, weights),
    }


def buffers_of(call: Call) -> Call:
    """Return a call that allocates what `call` does and nothing else."""
    made: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    empty = torch.empty

    def recorded(*shape: Any, **options: Any) -> Tensor:
        made.append((shape, options))
        return empty(*shape, **options)

    torch.empty = recorded
    try:
        call()
    finally:
        torch.empty = empty
    # As the call does, all are kept until the last is there.
    return lambda: [torch.empty(*shape, **options) for shape, options in made]


def page_of(page: str, rows: list[Row]) -> str:
    """Return the page with the table of the committed rows."""
    return with_section(page, START, END, table(rows))


def table(rows: list[Row]) -> str:
    """Return the table of two forms beside one another."""
    found = {(row["form"], row["operator"], row["T"]): row for row in rows}
    lines = [
        "| call, tokens | own, before | own, now | of it buffers | Triton's launches | 8 `triton.cdiv` |",
        "|---|---|---|---|---|---|",
    ]
    for form, operator, tokens in found:
        if form == "before":
            then, now = found[form, operator, tokens], found["plans", operator, tokens]
            figures = (then["own"], now["own"], now["buffers"], now["launches"], now["scale"])
            cells = " | ".join(f"{figure:.1f}" for figure in figures)
            lines.append(f"| `{operator}`, {tokens} | {cells} |")
    one = found["plans", "gated_lora_", 1]
    own, buffers = (one[part] * GOAL_SCALE / one["scale"] for part in ("own", "buffers"))
    lines += [
        "",
        f"The aim is {GOAL} on a machine where the last column is {GOAL_SCALE}: scaled so, the gated call is",
        f"at {own:.0f}, of which {buffers:.0f} are the buffers.",
    ]
    return "\n".join(lines) + "\n"


def eight_quotients() -> None:
    """Call `triton.cdiv` eight times."""
    for _ in range(8):
        triton.cdiv(4096, 64)


def microseconds(call: Call) -> float:
    """Return this thread's processor time of one call, the mean of a few in a row."""
    # Not the clock: on a machine that others use it has their work in it.
    start = time.thread_time_ns()
    for _ in range(CALLS):
        call()
    return (time.thread_time_ns() - start) / 1e3 / CALLS


@contextlib.contextmanager
def without_a_gpu() -> Iterator[None]:
    """Let the GPU's path serve CPU tensors, compiled for sm90, with a launcher that does nothing."""
    kept = operators.backend_for, gpu_table.architecture
    operators.backend_for = lambda x, layout: gpu_products
    gpu_table.architecture = lambda device: "default"
    triton.runtime.driver.set_active(_NoDriver())
    try:
        yield
    finally:
        operators.backend_for, gpu_table.architecture = kept
        triton.runtime.driver._active = None


@contextlib.contextmanager
def no_launches() -> Iterator[None]:
    """Replace every kernel by one whose launch does nothing."""
    kept = {f"{name}_kernel": getattr(gpu_launch, f"{name}_kernel") for name in KERNELS}
    for name in kept:
        setattr(gpu_launch, name, _NoKernel())
    try:
        yield
    finally:
        for name, kernel in kept.items():
            setattr(gpu_launch, name, kernel)


class _NoKernel:
    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return _launched


def _launched(*_: object, **__: object) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class _Utilities:
    """The answers of a driver while Triton loads a binary."""

    def load_binary(self, *_: object) -> tuple[object, object, int, int, int]:
        return object(), object(), 0, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132}


class _NoDriver:
    """A driver of a GPU that is not there, of the architecture sm90."""

    utils = _Utilities()

    def launcher_cls(self, source: object, metadata: object) -> Callable[..., None]:
        return _launched

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass
