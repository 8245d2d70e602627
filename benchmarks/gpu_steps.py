"""The steps of `benchmarks.gpu`, each a generator of rows, run one at a time in a process of its own."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks import gpu, gpu_model, kernel_variants, kernels, machine, timing
from benchmarks.kernel_points import RAGGED, Point
from benchmarks.kernel_variants import Problem
from benchmarks.pages import Row, write_row
from meteora_registry.kernels import gpu_products, gpu_table, gpu_tune, operators
from meteora_registry.kernels.gpu_graph import captured
from meteora_registry.kernels.reference import TOLERANCES, reference_routed_lora, relative_error
from meteora_registry.kernels.routed_lora import gated_lora_, routed_lora, routed_lora_
from meteora_registry.kernels.routing import Gate, Routing

CASES = gpu.ROOT / "tests" / "kernels" / "triton_cases.py"
REPEATS = 20
POINT_SECONDS = 0.25
POINTS = (
    Point(T=1, dtype="bf16"),
    Point(T=16, dtype="bf16"),
    Point(T=64, dtype="bf16"),
    Point(T=4096, dtype="bf16"),
    Point(T=4096, ranks=64, dtype="bf16"),
    Point(T=16, ranks=RAGGED, dtype="bf16"),
    Point(T=4096, ranks=RAGGED, dtype="bf16"),
    Point(T=512, ranks=64, dtype="bf16"),
    Point(T=64, ranks=64, dtype="bf16"),
    Point(T=4096, ranks=64, dtype="bf16", routing="concentrated"),
    Point(T=1, ranks=64, dtype="bf16"),
    Point(T=4, dtype="bf16"),
    Point(T=8, dtype="bf16"),
    Point(T=512, dtype="bf16"),
    Point(T=64, L=512, dtype="bf16"),
    Point(T=16),
    Point(T=4096),
)
DRY_POINTS = (
    Point(64, 48, L=4, T=1, dtype="bf16"),
    Point(64, 48, L=4, ranks=RAGGED, T=20, dtype="bf16"),
    Point(64, 48, L=4, T=70),
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

Calls = dict[str, Callable[[], object]]


@dataclass(frozen=True, slots=True)
class Setting:
    """The device of a step, and the time after which it starts nothing more."""

    device: str
    dry: bool
    end: float
    table: Path

    def has_time(self) -> bool:
        """Return whether the deadline is ahead."""
        return time.monotonic() < self.end

    @property
    def points(self) -> tuple[Point, ...]:
        """Return the points to measure, the important ones first."""
        return DRY_POINTS if self.dry else POINTS


def errors(setting: Setting) -> Iterator[Row]:
    """Compare both operators with float64 and with themselves."""
    for point in setting.points:
        if not setting.has_time():
            return
        problem = kernel_variants.problem_of(point, setting.device)
        yield from errors_of(problem, repeats=2 if setting.dry else REPEATS)


def errors_of(problem: Problem, *, repeats: int = REPEATS) -> Iterator[Row]:
    """Yield for each operator its error, and whether repeated calls give the same bits."""
    with torch.inference_mode():
        for name, call in both_operators(problem).items():
            first, routing = call()
            error = relative_error(first[: kernels.CHECKED_TOKENS], expected(problem, routing))
            bound = TOLERANCES[problem.x.dtype]
            yield {
                "subject": "errors",
                "point": problem.point.name,
                "operator": name,
                "error": error,
                "right": error <= bound,
                "repeated": all(torch.equal(first, call()[0]) for _ in range(repeats)),
            }


def expected(problem: Problem, routing: Routing) -> Tensor:
    """Return the float64 output of the checked tokens under a routing."""
    p, some = problem, slice(kernels.CHECKED_TOKENS)
    return reference_routed_lora(
        p.x[some],
        p.A,
        p.Bt,
        p.layout.offsets,
        p.layout.scaling,
        routing.selection[some],
        routing.weights[some],
    )


def both_operators(problem: Problem) -> dict[str, Callable[[], tuple[Tensor, Routing]]]:
    """Return the library's call with a routing and its call with a gate, each on a fresh output."""
    p, layout = problem, problem.layout
    rows = torch.randn(p.point.L, p.point.h, generator=torch.Generator().manual_seed(1)).to(p.x.device)
    gate = Gate(rows, None, "linear", p.point.k)

    def routed() -> tuple[Tensor, Routing]:
        out = kernel_variants.ours_in_place(p, p.x.new_zeros(p.point.T, p.point.D))
        return out, Routing(p.selection, p.weights)

    def gated() -> tuple[Tensor, Routing]:
        out = p.x.new_zeros(p.point.T, p.point.D)
        return out, gated_lora_(out, p.x, p.A, p.Bt, layout.offsets, layout.scaling, gate)

    return {"routed": routed, "gated": gated}


def decode(setting: Setting) -> Iterator[Row]:
    """Time a decoding step of one token and of sixteen."""
    make = decode_calls
    if setting.dry:
        make = functools.partial(decode_calls, members=4, linears=((64, 32), (32, 64)), layers=2)
    for tokens in (1, 16):
        if not setting.has_time():
            return
        calls = make(tokens, device=setting.device)
        with torch.inference_mode():
            yield {
                "subject": "decode",
                "T": tokens,
                "unit": "ms",
                "mode": "eager",
                **eager_times(calls, setting),
            }
            if setting.device == "cuda":
                graphs = {name: captured([call]) for name, call in calls.items()}
                times = timing.interleaved(graphs, device="cuda", seconds=2.0)
                medians = {name: found.p50 for name, found in times.items()}
                yield {"subject": "decode", "T": tokens, "unit": "ms", "mode": "graph", **medians}


def eager_times(calls: Calls, setting: Setting) -> dict[str, float]:
    """Return the milliseconds of each call from the host, the GPU's work included."""
    found = {}
    for name, call in calls.items():
        times = []
        for _ in range(1 if setting.dry else 6):
            start = time.perf_counter()
            call()
            if setting.device == "cuda":
                torch.cuda.synchronize()
            times.append((time.perf_counter() - start) * 1e3)
        found[name] = min(times)
    return found


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
    offsets, scaling = tuple(range(0, (members + 1) * rank, rank)), (2.0,) * members
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


def points(setting: Setting) -> Iterator[Row]:
    """Time each point beside other formulations; each is held against float64 first."""
    for point in setting.points:
        if not setting.has_time():
            yield {"subject": "kernels", "point": point.name, "skipped": "the time is over"}
            continue
        try:
            seconds = 0.0 if setting.dry else POINT_SECONDS
            for row in kernels.measure(point, setting.device, seconds):
                yield {"subject": "kernels", **dataclasses.asdict(point), "point": point.name, **row}
        except (AssertionError, RuntimeError) as error:
            yield {"subject": "kernels", "point": point.name, "failed": kernels.reason_of(error)}
        if setting.device == "cuda":
            torch.cuda.empty_cache()


def tests(setting: Setting) -> Iterator[Row]:
    """Run the kernel tests, in a process of their own."""
    # Only the kernels' own conftest: that of all tests needs the whole project.
    options = ["-q", "-x", "-c", os.devnull, f"--confcutdir={CASES.parent}", "-p", "no:cacheprovider"]
    some = ["-k", "odd"] if setting.dry else []
    # By their path alone: the tests' support is found by their own conftest.
    code, printed = gpu.finished(
        [sys.executable, "-m", "pytest", *options, *some, str(CASES)],
        gpu.step_environment(dry=setting.dry),
        max(1.0, setting.end - time.monotonic()),
    )
    yield {"subject": "tests", "passed": code == 0, "printed": printed}


def compiled(setting: Setting) -> Iterator[Row]:
    """Compile a forward and a gated call whole, and compare with the eager results."""
    backend = "aot_eager" if setting.dry else "inductor"
    for point in setting.points[1:3]:
        problem = kernel_variants.problem_of(point, setting.device)
        for name, call in compiled_calls(problem).items():
            if not setting.has_time():
                return
            row = {"subject": "compiled", "point": point.name, "call": name}
            try:
                found = torch.compile(call, fullgraph=True, backend=backend)(problem.x)
                wanted = call(problem.x)
                error = max(relative_error(a, b.double()) for a, b in zip(found, wanted, strict=True))
                yield {**row, "passed": error <= 2 * TOLERANCES[problem.x.dtype], "error": error}
            except Exception as error:  # noqa: BLE001 - a compiler fails in its own ways
                yield {**row, "passed": False, "printed": kernels.reason_of(error)}


def compiled_calls(problem: Problem) -> dict[str, Callable[[Tensor], tuple[Tensor, ...]]]:
    """Return functions of x that call each operator between operations of torch."""
    p = problem
    factors = (p.A, p.Bt, p.layout.offsets, p.layout.scaling)
    gate = Gate(torch.ones(p.point.L, p.point.h, device=p.x.device), None, "linear", p.point.k)

    def forward(x: Tensor) -> tuple[Tensor, ...]:
        return (linear(x, p.W) + routed_lora(x, *factors, p.selection, p.weights),)

    def gated(x: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            out = linear(x, p.W)
            gated_lora_(out, x, *factors, gate)
            return (out * 2,)

    return {"forward": forward, "gated": gated}


def generate(setting: Setting) -> Iterator[Row]:
    """Generate with a Llama of 8B shapes: the base, one LoRA in PEFT, 28 members with gates."""
    for row in gpu_model.rates(setting.device, dry=setting.dry, has_time=setting.has_time):
        yield {"subject": "generate", **row}


def sanitizer(setting: Setting) -> Iterator[Row]:
    """Run a few small calls under the sanitizer's tools."""
    for tool in ("memcheck", "racecheck"):
        row = {"subject": "sanitizer", "tool": tool}
        if shutil.which("compute-sanitizer") is None:
            yield {**row, "skipped": "`compute-sanitizer` is not installed"}
            continue
        script = "from benchmarks.gpu_steps import small_calls; small_calls()"
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", sys.executable, "-c", script]
        left = max(1.0, setting.end - time.monotonic())
        code, printed = gpu.finished(command, gpu.step_environment(dry=False), left)
        yield {**row, "passed": code == 0, "printed": printed}


def small_calls(device: str = "cuda") -> None:
    """Call both operators for one token, for a few, and for many, with gradients too."""
    for tokens in (1, 20, 70):
        problem = kernel_variants.problem_of(Point(128, 192, L=6, T=tokens, dtype="bf16"), device)
        with torch.no_grad():
            for call in both_operators(problem).values():
                call()
        x = problem.x.clone().requires_grad_()
        kernel_variants.ours(dataclasses.replace(problem, x=x)).sum().backward()
    if device == "cuda":
        torch.cuda.synchronize()


def tune(setting: Setting) -> Iterator[Row]:
    """Find block sizes for this GPU, and write them beside the rows."""
    minutes = max(0.0, setting.end - time.monotonic()) / 60
    rehearsal = ["--interpreted"] if setting.dry else []
    code = gpu_tune.main([str(setting.table), "--minutes", str(minutes), *rehearsal])
    key = "interpreter" if setting.dry else gpu_table.architecture(torch.device("cuda", 0))
    table = json.loads(setting.table.read_text(encoding="utf-8")) if setting.table.exists() else {}
    yield {"subject": "tune", "passed": code == 0, "architecture": key, "table": table.get(key)}


def again(setting: Setting) -> Iterator[Row]:
    """Repeat what block sizes change, with those that were found."""
    if not setting.table.exists():
        yield {"subject": "again", "skipped": "no block sizes were found"}
        return
    gpu_table.TABLE = setting.table
    for step in (errors, decode, points):
        for row in step(setting):
            yield {**row, "tuned": True}


STEPS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    step.__name__: step
    for step in (errors, decode, points, tests, compiled, generate, sanitizer, tune, again)
}


def main(arguments: list[str]) -> None:
    """Run one step and append its rows as they come."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_steps", description=__doc__)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="start nothing more after this time")
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args(arguments)
    device = "cpu" if options.dry else "cuda"
    end = time.monotonic() + options.seconds
    setting = Setting(device, options.dry, end, options.out.with_suffix(".table.json"))
    if options.dry:
        operators.backend_for = lambda x, layout: gpu_products
    torch.manual_seed(0)
    described = {**machine.description(device), "dry": options.dry}
    for row in STEPS[options.step](setting):
        write_row({**row, **described}, options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
