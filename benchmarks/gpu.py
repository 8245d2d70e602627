"""The kernels on a GPU, checked and measured in one run: ``python -m benchmarks.run gpu [--out FILE]``.

In this order, so that a run that is cut short has the important rows: the kernel tests on the GPU; whether
repeated calls give the same bits; a decoding step through the linears of Llama-3-8B; the points of the kernel
benchmark, each held against float64 before it is timed; memory errors and races, where NVIDIA's
`compute-sanitizer` is installed. It needs torch, triton, numpy and pytest, and takes about eight minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks import kernel_variants, kernels, machine, timing
from benchmarks.kernel_points import RAGGED, Point
from benchmarks.kernel_variants import Problem
from meteora_registry.kernels.routed_lora import gated_lora_, routed_lora_
from meteora_registry.kernels.routing import Gate

ROOT = Path(__file__).resolve().parents[1]
CASES = ROOT / "tests" / "kernels" / "triton_cases.py"
CASES_SECONDS = 150
SANITIZER_SECONDS = 60
REPEATS = 20
POINTS = (
    Point(T=1, dtype="bf16"),
    Point(T=1, ranks=64, dtype="bf16"),
    Point(T=16, dtype="bf16"),
    Point(T=16, ranks=RAGGED, dtype="bf16"),
    Point(T=64, dtype="bf16"),
    Point(T=512, ranks=64, dtype="bf16"),
    Point(T=4096, dtype="bf16"),
    Point(T=4096, ranks=RAGGED, dtype="bf16"),
    Point(T=16),
    Point(T=4096),
)
# Output and input features of the linears of one layer of Llama-3-8B, and its layers.
LINEARS = (
    (4096, 4096),
    (1024, 4096),
    (1024, 4096),
    (4096, 4096),
    (14336, 4096),
    (14336, 4096),
    (4096, 14336),
)
LAYERS = 32

Row = dict[str, Any]
Calls = dict[str, Callable[[], object]]


def main(arguments: list[str]) -> None:
    """Run every part and write one line of JSON per row; refuse where there is no GPU."""
    options = parse(arguments)
    if not torch.cuda.is_available():
        raise SystemExit(
            "error: torch finds no CUDA device on this machine; run this where `nvidia-smi` lists a GPU and "
            "torch is a build with CUDA, or measure the CPU with `python -m benchmarks.run kernels`"
        )
    torch.manual_seed(0)
    described, end = machine.description("cuda"), time.monotonic() + options.seconds
    out = options.out.open("a", encoding="utf-8") if options.out else sys.stdout
    for row in all_rows(lambda: time.monotonic() < end):
        print(json.dumps({**row, **described}), file=out, flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run gpu", description=__doc__)
    parser.add_argument("--seconds", type=float, default=480.0, help="start no further point after this time")
    parser.add_argument("--out", type=Path, help="append the rows to this file")
    return parser.parse_args(arguments)


def all_rows(has_time: Callable[[], bool]) -> Iterator[Row]:
    """Yield the rows of the whole run."""
    yield kernel_tests()
    for point in POINTS:
        yield {
            "subject": "repeated",
            "point": point.name,
            **repeated(kernel_variants.problem_of(point, "cuda")),
        }
    for tokens in (1, 16):
        yield {"subject": "decode", "T": tokens, **decode_times(tokens)}
        torch.cuda.empty_cache()
    for point in POINTS:
        if not has_time():
            yield {"subject": "kernels", "point": point.name, "skipped": "the time is over"}
            continue
        print(point.name, file=sys.stderr, flush=True)
        for row in kernels.measure(point, "cuda", 0.5):
            yield {"subject": "kernels", **dataclasses.asdict(point), "point": point.name, **row}
        torch.cuda.empty_cache()
    for tool in ("memcheck", "racecheck"):
        yield sanitized(tool)


def kernel_tests() -> Row:
    """Run the kernel tests on the GPU, in a process of their own."""
    # torch may ask for the workspace when deterministic algorithms are on, as they are in these tests.
    changes = {"PYTHONPATH": str(ROOT / "src"), "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    # Only the kernels' own conftest: that of all tests needs the whole project.
    options = ["-q", "-x", "-c", os.devnull, f"--confcutdir={CASES.parent}", "-p", "no:cacheprovider"]
    return {
        "subject": "tests",
        **finished([sys.executable, "-m", "pytest", *options, str(CASES)], changes, CASES_SECONDS),
    }


def sanitized(tool: str) -> Row:
    """Run a few small calls under one of the sanitizer's tools."""
    row = {"subject": tool}
    if shutil.which("compute-sanitizer") is None:
        return row | {"skipped": "`compute-sanitizer` is not installed"}
    script = "from benchmarks.gpu import small_calls; small_calls()"
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", sys.executable, "-c", script]
    return row | finished(command, {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}, SANITIZER_SECONDS)


def finished(command: list[str], changes: dict[str, str], seconds: float) -> Row:
    """Return whether a command succeeded, and the last line that it printed."""
    environment = os.environ | changes
    try:
        run = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"passed": False, "printed": f"not finished within {seconds} s"}
    printed = (run.stdout + run.stderr).strip().splitlines()
    return {"passed": run.returncode == 0, "printed": printed[-1] if printed else ""}


def small_calls() -> None:
    """Call both operators for one token, for a few, and for many."""
    for tokens in (1, 20, 70):
        problem = kernel_variants.problem_of(Point(128, 192, L=6, T=tokens, dtype="bf16"), "cuda")
        for call in both_operators(problem).values():
            call()
    torch.cuda.synchronize()


def both_operators(problem: Problem) -> dict[str, Callable[[], Tensor]]:
    """Return the library's call with a routing and its call with a gate, each on a fresh output."""
    p, layout = problem, problem.layout
    rows = torch.randn(p.point.L, p.point.h, generator=torch.Generator().manual_seed(1)).to(p.x.device)
    gate = Gate(rows, None, "linear", p.point.k)

    def gated() -> Tensor:
        out = p.x.new_zeros(p.point.T, p.point.D)
        gated_lora_(out, p.x, p.A, p.Bt, layout.offsets, layout.scaling, gate)
        return out

    return {
        "routed": lambda: kernel_variants.ours_in_place(p, p.x.new_zeros(p.point.T, p.point.D)),
        "gated": gated,
    }


def repeated(problem: Problem) -> Row:
    """Return for each operator whether repeated calls give the same bits."""
    with torch.inference_mode():
        found = {}
        for name, call in both_operators(problem).items():
            first = call()
            found[name] = all(torch.equal(first, call()) for _ in range(REPEATS))
    return found


def decode_times(tokens: int) -> Row:
    """Return the milliseconds of one decoding step, replayed as CUDA graphs that take turns."""
    with torch.inference_mode():
        graphs = {name: timing.captured(call) for name, call in decode_calls(tokens).items()}
        times = timing.interleaved(graphs, device="cuda", seconds=3.0)
    return {"unit": "ms"} | {name: dataclasses.asdict(found) for name, found in times.items()}


def decode_calls(
    tokens: int,
    *,
    members: int = 28,
    rank: int = 8,
    linears: tuple[tuple[int, int], ...] = LINEARS,
    layers: int = LAYERS,
    device: str = "cuda",
) -> Calls:
    """Return one decoding step through a model's linears: the base, one plain LoRA, ours in both forms."""

    def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(*shape, device=device, dtype=dtype).normal_(0, 0.02)

    parts = [
        (
            draw(tokens, h),
            draw(D, h),
            draw(members * rank, h),
            draw(members * rank, D),
            Gate(draw(members, h, dtype=torch.float32), None, "linear", 2),
        )
        for _ in range(layers)
        for D, h in linears
    ]
    offsets, scaling = list(range(0, (members + 1) * rank, rank)), [2.0] * members
    first = torch.randint(members, (tokens, 1), device=device)
    selection = torch.cat([first, (first + 1) % members], dim=1)
    weights = torch.full((tokens, 2), 0.5, device=device)

    def base() -> None:
        for x, W, _, _, _ in parts:
            linear(x, W)

    def one_lora() -> None:
        for x, W, A, Bt, _ in parts:
            linear(x, W).addmm_(x @ A[:rank].T, Bt[:rank])

    def routed() -> None:
        for x, W, A, Bt, _ in parts:
            routed_lora_(linear(x, W), x, A, Bt, offsets, scaling, selection, weights)

    def gated() -> None:
        for x, W, A, Bt, gate in parts:
            gated_lora_(linear(x, W), x, A, Bt, offsets, scaling, gate)

    return {"base": base, "one_lora": one_lora, "routed": routed, "gated": gated}
