"""Calls that a CUDA graph can hold, and rows that a run of the kernels' benchmark keeps; without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")
from benchmarks import host, kernel_variants, kernels
from benchmarks.kernel_points import RAGGED, Point
from benchmarks.kernel_variants import Problem, problem_of

POINTS = {
    "one-token": Point(64, 48, L=4),
    "dense-branch": Point(64, 48, L=4, T=20, dtype="bf16"),
    "ragged": Point(64, 48, L=4, T=20, ranks=RAGGED),
    "many-rows": Point(64, 48, L=12, T=70, ranks=64),
}
aten = torch.ops.aten
# What reads a value on the host, or makes a tensor of host data: a capture refuses both.
REFUSED = (aten.lift_fresh, aten._local_scalar_dense, aten.nonzero, aten._unique2)


class Capture(TorchDispatchMode):
    """Refuses what the capture of a CUDA graph would."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket not in REFUSED, func
        return func(*args, **(kwargs or {}))


@pytest.fixture
def _no_gpu() -> Iterator[None]:
    with torch.no_grad(), host.without_a_gpu(), host.no_launches():
        yield


@pytest.mark.usefixtures("_no_gpu")
@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_every_captured_call_can_be_captured(point: Point) -> None:
    calls = kernels.calls_of(problem_of(point, "cpu"))
    for name in calls.keys() - kernels.HOST_READERS:
        # Of our formulations for a CPU none is captured.
        if "+" not in name:
            calls[name]()
            with Capture():
                calls[name]()


@pytest.mark.usefixtures("_no_gpu")
@pytest.mark.parametrize("name", kernels.HOST_READERS)
def test_calls_that_are_not_captured_could_not_be(name: str) -> None:
    call = kernels.calls_of(problem_of(POINTS["one-token"], "cpu"))[name]
    with pytest.raises(AssertionError), Capture():
        call()


@pytest.mark.parametrize(("tokens", "copies"), [(1, 16), (64, 16), (65, 4)])
def test_calls_of_one_graph_read_factors_of_their_own(
    tokens: int, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems: list[Problem] = []
    monkeypatch.setattr(kernels, "calls_of", problems.append)
    kernels.rotating(problem_of(Point(64, 48, L=4, T=tokens), "cpu"))
    assert len(problems) == copies
    for name in ("W", "A", "Bt", "padded_a", "padded_b"):
        tensors = [getattr(problem, name) for problem in problems]
        assert len({tensor.data_ptr() for tensor in tensors}) == copies
        assert all(torch.equal(tensor, tensors[0]) for tensor in tensors)


def test_variant_that_fails_is_a_row_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(problem: Problem) -> torch.Tensor:
        return problem.x.new_zeros(problem.point.T, problem.point.D)

    def broken(problem: Problem) -> torch.Tensor:
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(kernel_variants, "dense", wrong)
    monkeypatch.setattr(kernel_variants, "gathered_bmm", broken)
    rows = list(kernels.measure(Point(64, 48, L=4), "cpu", 0.0))
    failed = {row["provider"]: row["failed"] for row in rows if "failed" in row}
    assert failed["gathered_bmm"] == "RuntimeError: no such kernel"
    assert failed["dense"].startswith("AssertionError: `dense` is wrong at ")
    measured = {row["provider"] for row in rows if "p50" in row}
    assert "meteora" in measured
    assert not measured & failed.keys()


def test_run_that_is_interrupted_keeps_its_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def measure(*_: object) -> Iterator[dict[str, object]]:
        yield {"provider": "first"}
        assert path.read_text(encoding="utf-8").count("\n") == 1
        raise KeyboardInterrupt

    path = tmp_path / "rows.jsonl"
    monkeypatch.setattr(kernels, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        kernels.main(["--out", str(path)])


def test_no_point_is_started_when_the_time_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    kernels.main(["--minutes", "0"])
    assert "the time is over after 0 of " in capsys.readouterr().err
