"""The kernels on a GPU, checked and measured in one run: ``python -m benchmarks.run gpu --out FILE``.

The steps are below, the important ones first, each in a process that a deadline ends: a step that fails
or hangs costs its own rows and no others. Rows are lines of JSON, written when they are known, so that a run
that is killed keeps them; at the end the goals are printed beside what was found. It needs torch, triton,
numpy, pytest and hypothesis; one step also transformers and peft. `--dry` goes through all of it on the CPU,
in Triton's interpreter, at small sizes: it shows that every step runs and measures nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import gpu_goals
from benchmarks.pages import read_rows, write_row

ROOT = Path(__file__).resolve().parents[1]
MINUTES = 14.0
# Of a step's time, what it leaves for what is under way when it starts nothing more.
OWN_SHARE = 0.8
PRINTED_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Step:
    """One step: its name in `gpu_steps`, its share of the time, and what it shows."""

    name: str
    share: float
    shows: str


STEPS = (
    Step("errors", 0.12, "each operator against float64, and the same bits again"),
    Step("decode", 0.08, "a decoding step through the 224 linears of Llama-3-8B"),
    Step("points", 0.20, "times beside other formulations, in and out of CUDA graphs"),
    Step("tests", 0.14, "the kernels' tests"),
    Step("compiled", 0.06, "torch.compile with fullgraph=True"),
    Step("generate", 0.10, "a generate loop on a Llama of 8B shapes with 28 members"),
    Step("sanitizer", 0.06, "memory errors and races by compute-sanitizer"),
    Step("tune", 0.12, "block sizes for this GPU"),
    Step("again", 0.12, "errors, decode and points once more, with these block sizes"),
)


def main(arguments: list[str]) -> None:
    """Run every step, then print the goals; refuse where there is no GPU."""
    options = parse(arguments)
    if not (options.dry or torch.cuda.is_available()):
        raise SystemExit(
            "error: torch finds no CUDA device on this machine; run this where `nvidia-smi` lists a GPU and "
            "torch is a build with CUDA, rehearse it with `--dry`, or measure the CPU with "
            "`python -m benchmarks.run kernels`"
        )
    steps = [step for step in STEPS if not options.only or step.name in options.only]
    start, total = time.monotonic(), sum(step.share for step in steps)
    passed = 0.0
    for step in steps:
        passed += step.share / total
        # What earlier steps did not need is the later ones'.
        run_step(step, start + 60 * options.minutes * passed, options)
    for row in gpu_goals.goals(read_rows(options.out)):
        write_row(row, options.out)
        print(gpu_goals.line(row), flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="append the rows to this file")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="end every step within this time")
    parser.add_argument(
        "--only", action="append", choices=[step.name for step in STEPS], help="run this step"
    )
    parser.add_argument("--dry", action="store_true", help="rehearse on the CPU")
    return parser.parse_args(arguments)


def run_step(step: Step, end: float, options: argparse.Namespace) -> None:
    """Run one step until `end`, and append whether it came to its own end."""
    start = time.monotonic()
    seconds = max(0.0, end - start)
    command = [sys.executable, "-m", "benchmarks.gpu_steps", step.name, "--out", str(options.out)]
    command += ["--seconds", str(OWN_SHARE * seconds), *(["--dry"] if options.dry else [])]
    code, printed = finished(command, step_environment(dry=options.dry), seconds)
    row = {"subject": "step", "step": step.name, "seconds": round(time.monotonic() - start, 1)}
    write_row({**row, "passed": code == 0, "printed": printed}, options.out)
    print(f"{step.name}: {'done' if code == 0 else printed} ({row['seconds']} s)", flush=True)


def step_environment(*, dry: bool) -> dict[str, str]:
    """Return the environment of a step."""
    # torch may ask for the workspace when deterministic algorithms are on, as they are in the tests.
    changes = {
        "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        **({"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"} if dry else {}),
    }
    return os.environ | changes


def finished(command: list[str], environment: dict[str, str], seconds: float) -> tuple[int | None, str]:
    """Return a command's exit code, None if it had to be ended, and the last line that it printed."""
    with subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as child:
        try:
            printed, _ = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            # Its children, too: they would keep the GPU.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            return None, f"not finished within {seconds:.0f} s"
    lines = printed.strip().splitlines()
    return child.returncode, lines[-1][:PRINTED_CHARACTERS] if lines else ""
