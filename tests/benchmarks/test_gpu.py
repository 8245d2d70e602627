"""The run on a GPU: refused without one, rehearsed in the interpreter, and what its goals make of rows."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

pytest.importorskip("triton")
from benchmarks import gpu, gpu_goals, gpu_steps, run
from benchmarks.kernel_points import Point
from benchmarks.kernel_variants import problem_of
from benchmarks.pages import read_rows


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_gpu_benchmark_is_refused_without_a_cuda_device(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="error: torch finds no CUDA device on this machine; run this where"):
        run.main(["gpu", "--out", str(tmp_path / "rows.jsonl")])
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "rows.jsonl").exists()


def rehearsed(path: Path, minutes: float, *steps: str) -> list[dict[str, Any]]:
    only = [word for step in steps for word in ("--only", step)]
    run.main(["gpu", "--dry", "--minutes", str(minutes), "--out", str(path), *only])
    return read_rows(path)


def test_rehearsal_runs_its_steps_in_the_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("numpy", reason="Triton's interpreter computes with numpy")
    rows = rehearsed(tmp_path / "rows.jsonl", 5, "errors", "sanitizer")
    assert [row["passed"] for row in rows if row["subject"] == "step"] == [True, True]
    errors = [row for row in rows if row["subject"] == "errors"]
    assert {row["operator"] for row in errors} == {"routed", "gated"}
    assert {row["point"] for row in errors} == {point.name for point in gpu_steps.DRY_POINTS}
    assert all(row["right"] and row["repeated"] and row["dry"] for row in errors)
    met = {row["goal"]: row["met"] for row in rows if row["subject"] == "goal"}
    assert met["calls within the tolerance of float64"] is True
    assert met["T = 64, over the best other formulation"] is None


def test_step_that_is_not_finished_does_not_stop_the_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rehearsed(tmp_path / "rows.jsonl", 0, "errors", "decode")
    steps = {row["step"]: (row["passed"], row["printed"]) for row in rows if row["subject"] == "step"}
    assert steps == dict.fromkeys(("errors", "decode"), (False, "not finished within 0 s"))
    assert "MISSED: steps that came to their end: 0 (all)" in capsys.readouterr().out


def test_every_step_has_a_share_and_all_shares_are_the_whole() -> None:
    assert [step.name for step in gpu.STEPS] != []
    assert {step.name for step in gpu.STEPS} == gpu_steps.STEPS.keys()
    assert sum(step.share for step in gpu.STEPS) == pytest.approx(1)


def test_children_of_a_command_that_is_ended_end_with_it(tmp_path: Path) -> None:
    written = tmp_path / "child"
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(written)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    command, environment = [sys.executable, "-c", script], gpu.step_environment(dry=True)
    seconds = 0.5
    while not written.exists() or not written.read_text():
        seconds *= 2
        assert gpu.finished(command, environment, seconds)[0] is None
    child = int(written.read_text())
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)


def test_command_that_fails_is_reported_with_its_last_line() -> None:
    found = gpu.finished(["sh", "-c", "echo first; echo last >&2; exit 3"], {}, 60)
    assert found == (3, "last")


def test_decoding_step_runs_in_every_form() -> None:
    sizes = {"members": 4, "rank": 8, "linears": ((64, 32), (32, 64)), "layers": 2}
    calls = gpu_steps.decode_calls(3, device="cpu", **sizes)  # type: ignore[arg-type]  # two types in one dict
    with torch.inference_mode():
        for call in calls.values():
            call()
    assert list(calls) == ["base", "one_lora", "routed", "gated"]


def test_calls_are_compared_for_both_operators() -> None:
    found = list(gpu_steps.errors_of(problem_of(Point(64, 48, L=4, T=5), "cpu"), repeats=2))
    assert [(row["operator"], row["right"], row["repeated"]) for row in found] == [
        ("routed", True, True),
        ("gated", True, True),
    ]


def timed(tokens: int, mode: str, provider: str, p50: float, ranks: int | str = 8) -> dict[str, Any]:
    point = Point(T=tokens, ranks=ranks, dtype="bf16").name
    return {"subject": "kernels", "point": point, "mode": mode, "provider": provider, "p50": p50}


ROWS: dict[str, tuple[list[dict[str, Any]], float]] = {
    "ms that 224 gated linears add to a token, in one graph": (
        [{"subject": "decode", "T": 1, "mode": "graph", "base": 4.0, "gated": 4.5}],
        0.5,
    ),
    "T = 64, over the best other formulation": (
        [
            timed(64, "graph", "meteora", 3.0),
            timed(64, "graph", "dense", 2.0),
            timed(64, "graph", "gathered_bmm", 4.0),
            timed(64, "graph", "one_lora", 1.0),
        ],
        1.5,
    ),
    "T = 4096, one of 64 among 8s, over all of 8": (
        [
            timed(4096, "graph", "meteora", 2.4, "ragged"),
            timed(4096, "graph", "meteora_even", 2.0, "ragged"),
        ],
        1.2,
    ),
    "T = 4096, forward + backward over forward": (
        [timed(4096, "forward", "meteora", 2.0), timed(4096, "forward+backward", "meteora", 6.0)],
        3.0,
    ),
    "kernel tests": ([{"subject": "tests", "passed": False}], 0.0),
    "calls with the same bits when repeated": (
        [{"subject": "errors", "repeated": True, "right": True}] * 3
        + [{"subject": "errors", "repeated": False, "right": True}],
        0.75,
    ),
}


@pytest.mark.parametrize("goal", ROWS)
def test_goal_is_found_in_its_rows(goal: str) -> None:
    rows, expected = ROWS[goal]
    found = {row["goal"]: row for row in gpu_goals.goals(rows)}
    assert found[goal]["found"] == pytest.approx(expected)
    assert found[goal]["met"] is (expected <= found[goal].get("at_most", -1))


def test_times_with_tuned_blocks_replace_the_first() -> None:
    rows = [timed(64, "graph", "meteora", 3.0), timed(64, "graph", "dense", 2.0)]
    rows += [{**timed(64, "graph", "meteora", 1.0), "tuned": True}]
    found = {row["goal"]: row for row in gpu_goals.goals(rows)}
    assert found["T = 64, over the best other formulation"]["met"] is True
