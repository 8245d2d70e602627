"""The benchmark of the kernels on a GPU: what it does without one, and its calls at small sizes on a CPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu, run
from benchmarks.kernel_points import Point
from benchmarks.kernel_variants import problem_of


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_gpu_benchmark_is_refused_without_a_cuda_device(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="error: torch finds no CUDA device on this machine; run this where"):
        run.main(["gpu"])
    assert capsys.readouterr().out == ""


def test_decoding_step_runs_in_every_form() -> None:
    sizes = {"members": 4, "rank": 8, "linears": ((64, 32), (32, 64)), "layers": 2}
    calls = gpu.decode_calls(3, device="cpu", **sizes)  # type: ignore[arg-type]  # two types in one dict
    with torch.inference_mode():
        for call in calls.values():
            call()
    assert list(calls) == ["base", "one_lora", "routed", "gated"]


def test_repeated_calls_are_compared_for_both_operators() -> None:
    found = gpu.repeated(problem_of(Point(64, 48, L=4, T=5), "cpu"))
    assert found == {"routed": True, "gated": True}


def test_command_that_fails_is_reported_with_its_last_line() -> None:
    found = gpu.finished(["sh", "-c", "echo first; echo last; exit 3"], {}, 60)
    assert found == {"passed": False, "printed": "last"}
