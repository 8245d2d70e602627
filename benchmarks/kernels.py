"""Routed LoRA beside published formulations: ``python -m benchmarks.run kernels [--device cpu|cuda]``.

At each point every variant is first held against the float64 reference: no time is taken of a wrong result.
Then the variants take turns, forward and forward + backward (gradients of x and of the routing's weights,
experts frozen), with one plain LoRA and the base GEMM in the same pass. On a GPU each forward is timed by
events, launched from the host and replayed as a CUDA graph of several calls, each with factors of its own.
One JSON object per row, written as soon as it is known; what a variant cannot do at a point, or fails at, is
a row with the reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import kernel_variants, machine, timing
from benchmarks.kernel_points import Point, all_points
from benchmarks.kernel_variants import Problem
from benchmarks.pages import write_row
from meteora_registry.kernels.gpu_graph import captured
from meteora_registry.kernels.reference import TOLERANCES, reference_routed_lora, relative_error

# The reference is a loop in float64: some tokens of the point stand for all.
CHECKED_TOKENS = 24
# A plain re-implementation rounds oftener than the library does.
OTHERS_TOLERANCE = 3.0
GATHERED_BYTES = 6e8
DENSE_FLOP = 1.5e11
HOST_READERS = ("official_loop", "present_loop")
# Calls in one graph: of few tokens, then of many, which take longer than a graph's launch each.
FEW_TOKENS = 64
GRAPH_CALLS = (16, 4)


def main(arguments: list[str]) -> None:
    """Measure the points asked for and write one line of JSON per row."""
    options = parse(arguments)
    torch.manual_seed(0)
    described = machine.description(options.device)
    points = [point for point in all_points() if options.only in point.name]
    end = time.monotonic() + 60 * options.minutes
    for number, point in enumerate(points, 1):
        if time.monotonic() > end:
            print(f"the time is over after {number - 1} of {len(points)} points", file=sys.stderr)
            break
        print(f"{number}/{len(points)} {point.name}", file=sys.stderr, flush=True)
        for row in measure(point, options.device, options.seconds):
            write_row({**dataclasses.asdict(point), "point": point.name, **row, **described}, options.out)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run kernels", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", default="", help="measure the points whose name contains this")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each pass over the variants")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no point after this time")
    parser.add_argument("--out", type=Path, help="append the rows to this file")
    return parser.parse_args(arguments)


def measure(point: Point, device: str, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield the rows of one point."""
    problem = kernel_variants.problem_of(point, device)
    forwards: dict[str, Callable[[], Tensor]] = {}
    errors: dict[str, float] = {}
    expected = reference(problem)
    for name, call in kernel_variants.variants_of(problem).items():
        reason = why_not(name, problem)
        if reason is not None:
            yield {"provider": name, "skipped": reason}
            continue
        try:
            errors[name] = checked(name, call, problem, expected)
        except (AssertionError, RuntimeError) as error:
            yield {"provider": name, "failed": reason_of(error)}
            continue
        forwards[name] = call
    forwards |= kernel_variants.floors_of(problem)
    out = problem.x.new_zeros(point.T, point.D)
    with torch.no_grad():
        in_place = {"meteora_": lambda: kernel_variants.ours_in_place(problem, out)}
        yield from rows("forward", {**forwards, **in_place}, errors, device, seconds)
        if device == "cuda":
            yield from graph_rows(problem, [*forwards, *in_place], errors, seconds)
    trained = {name: call for name, call in forwards.items() if name != "base_gemm" and "+" not in name}
    yield from backward_rows(problem, trained, errors, device, seconds)


def why_not(name: str, problem: Problem) -> str | None:
    """Return why a variant is not measured at a point, None if it is."""
    p = problem.point
    gathered = p.T * p.k * problem.rank * (p.h + p.D) * problem.x.element_size()
    if name == "gathered_bmm" and gathered > GATHERED_BYTES:
        return f"would copy {gathered / 1e9:.1f} GB of experts"
    flop = 2.0 * p.T * problem.layout.rows * (p.h + p.D)
    if name.startswith("dense") and problem.x.device.type == "cpu" and flop > DENSE_FLOP:
        return f"would take {flop / 1e9:.0f} GFLOP"
    return None


def reference(problem: Problem) -> Tensor:
    """Return the float64 output of the checked tokens."""
    p, some = problem, slice(CHECKED_TOKENS)
    return reference_routed_lora(
        p.x[some], p.A, p.Bt, p.layout.offsets, p.layout.scaling, p.selection[some], p.weights[some]
    )


def checked(name: str, call: Callable[[], Tensor], problem: Problem, expected: Tensor) -> float:
    """Return a variant's error against the float64 reference of the checked tokens.

    Raises:
        AssertionError: if it is beyond the tolerance.
    """
    with torch.no_grad():
        error = relative_error(call()[:CHECKED_TOKENS], expected)
    bound = TOLERANCES[problem.x.dtype] * (1.0 if name.startswith("meteora") else OTHERS_TOLERANCE)
    if error > bound:
        raise AssertionError(
            f"`{name}` is wrong at {problem.point.name}: error {error:.1e}, expected at most {bound:.0e}"
        )
    return error


def rows(
    mode: str,
    calls: Mapping[str, Callable[[], object]],
    errors: dict[str, float],
    device: str,
    seconds: float,
) -> Iterator[dict[str, Any]]:
    """Yield one row per variant of an interleaved pass."""
    for name, times in timing.interleaved(calls, device=device, seconds=seconds).items():
        peak = timing.peak_megabytes(calls[name], device=device)
        yield {
            "provider": name,
            "mode": mode,
            "unit": "ms",
            **dataclasses.asdict(times),
            "peak_mb": round(peak, 3),
            "error": errors.get(name),
        }


def graph_rows(
    problem: Problem, names: list[str], errors: dict[str, float], seconds: float
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the forwards that a CUDA graph can hold, replayed; why not, for the others."""
    graphs: dict[str, Callable[[], object]] = {}
    sets = rotating(problem)
    for name in names:
        row = {"provider": name, "mode": "graph"}
        if name in HOST_READERS:
            yield {**row, "skipped": "reads the routing on the host"}
            continue
        try:
            graphs[name] = captured([calls[name] for calls in sets])
        except RuntimeError as error:
            yield {**row, "failed": reason_of(error)}
    times = timing.interleaved(graphs, device="cuda", seconds=seconds, calls=len(sets))
    for name, quantiles in times.items():
        row = {"provider": name, "mode": "graph", "unit": "ms", **dataclasses.asdict(quantiles)}
        yield {**row, "calls_in_graph": len(sets), "error": errors.get(name)}


def rotating(problem: Problem) -> list[dict[str, Callable[[], Tensor]]]:
    """Return the calls of several copies of a problem, by provider: what each reads is not in the caches."""
    copies = GRAPH_CALLS[problem.point.T > FEW_TOKENS] - 1
    return [calls_of(problem), *(calls_of(kernel_variants.copied(problem)) for _ in range(copies))]


def calls_of(problem: Problem) -> dict[str, Callable[[], Tensor]]:
    """Return every forward of a problem, the floors, and ours in place."""
    out = problem.x.new_zeros(problem.point.T, problem.point.D)
    return {
        **kernel_variants.variants_of(problem),
        **kernel_variants.floors_of(problem),
        "meteora_": lambda: kernel_variants.ours_in_place(problem, out),
    }


def reason_of(error: Exception) -> str:
    """Return the first line of an error's message, with its type."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"


def backward_rows(
    problem: Problem,
    forwards: dict[str, Callable[[], Tensor]],
    errors: dict[str, float],
    device: str,
    seconds: float,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of forward + backward, gradients of x and of the weights."""
    problem.x.requires_grad_()
    problem.weights.requires_grad_()
    cotangent = torch.randn_like(problem.x.new_empty(problem.point.T, problem.point.D))

    def step(forward: Callable[[], Tensor]) -> None:
        problem.x.grad = problem.weights.grad = None
        forward().backward(cotangent)

    calls: dict[str, Callable[[], object]] = {}
    for name, forward in forwards.items():
        try:
            step(forward)
        except RuntimeError as error:
            yield {"provider": name, "mode": "forward+backward", "failed": reason_of(error)}
            continue
        calls[name] = functools.partial(step, forward)
    yield from rows("forward+backward", calls, errors, device, seconds)
