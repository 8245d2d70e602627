"""The model of costs: the page shows it, it has the library's launches, and ragged ranks stay cheap."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from benchmarks import kernel_costs
from benchmarks.kernel_points import RAGGED, Point
from meteora_registry.kernels import gpu_launch, gpu_products, gpu_table
from meteora_registry.kernels.layout import layout_of
from meteora_registry.kernels.routing import Gate, Routing
from support.gpu_compilation import Call, Recorder


def test_page_shows_the_model() -> None:
    page = kernel_costs.PAGE.read_text(encoding="utf-8")
    assert kernel_costs.page_of(page) == page


def test_model_decides_as_the_library_does() -> None:
    names = ("DENSE_ROWS", "DENSE_TOKENS", "GATED_ROWS")
    for name in names:
        assert getattr(kernel_costs, name) == getattr(gpu_products, name)
    assert kernel_costs.GATED_TOKENS == gpu_products.FEW_TOKENS
    assert kernel_costs.SPLITS == gpu_launch.MOST_SPLITS
    assert kernel_costs.LEAST_TILE == gpu_launch.LEAST_TILE


@pytest.mark.parametrize("ranks", [8, 64, RAGGED])
@pytest.mark.parametrize("tokens", kernel_costs.TOKENS)
def test_model_has_the_launches_that_are_made(
    tokens: int, ranks: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = Point(h=64, D=64, T=tokens, ranks=ranks)
    made = launched(point, monkeypatch)
    costs = kernel_costs.routed(point), kernel_costs.gated(point, previous=False)
    assert made == [len(cost.launches) for cost in costs]


def launched(point: Point, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the launches of a call with a routing and of one with a gate, products of torch included."""
    calls: list[object] = []
    recorded: list[Call] = []
    for name in ("shrink", "expand", "project", "route", "spread"):
        kernel = getattr(gpu_launch, f"{name}_kernel")
        monkeypatch.setattr(gpu_launch, f"{name}_kernel", Recorder(kernel, recorded))
    monkeypatch.setattr(gpu_table, "architecture", lambda device: "default")
    ranks = point.rank_list
    layout = layout_of([sum(ranks[:i]) for i in range(len(ranks) + 1)], [1.0] * len(ranks))
    with torch.device("meta"):
        x, out = torch.empty(2, point.T, point.h, dtype=torch.bfloat16)
        A, Bt = torch.empty(2, layout.rows, point.h, dtype=torch.bfloat16)
        routing = Routing(torch.empty(point.T, 2, dtype=torch.int64), torch.empty(point.T, 2))
        gate = Gate(torch.empty(len(ranks), point.h), None, "linear", 2)
    found = []
    for call in (
        lambda: gpu_products.forward(x, A, Bt, layout, routing, out),
        lambda: gpu_products.gated_forward(x, A, Bt, layout, gate, out),
    ):
        recorded.clear()
        calls.clear()
        with Products() as products:
            call()
        found.append(len(recorded) + products.count)
    for plan in (gpu_launch._routed_plans, gpu_launch._gated_plans, gpu_launch._route_plans):
        plan.cache_clear()
    return found


class Products(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts torch's products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("members", "largest"), kernel_costs.RAGGED_LAYOUTS)
@pytest.mark.parametrize("tokens", kernel_costs.TOKENS)
def test_one_large_rank_costs_the_others_little(tokens: int, members: int, largest: int) -> None:
    ratio = kernel_costs.ragged_ratio(tokens, members, largest, previous=False)
    assert 1.0 <= ratio <= 1.3


def test_one_large_rank_cost_more_before() -> None:
    now, before = (kernel_costs.ragged_ratio(4096, 128, 256, previous=form) for form in (False, True))
    assert before > 1.3
    page = " ".join(kernel_costs.PAGE.read_text(encoding="utf-8").split())
    assert (
        f"among 127 of rank 8 costs {now:.2f} times 128 of rank 8 by the model below, where it cost" in page
    )
    assert f"where it cost {before:.2f} times" in page


@pytest.mark.parametrize("point", kernel_costs.SHOWN, ids=lambda point: point.name)
def test_no_form_is_below_the_floor(point: Point) -> None:
    least = kernel_costs.floor(point).us
    for cost in (kernel_costs.routed(point), kernel_costs.dense(point), kernel_costs.sorted_groups(point)):
        assert cost.us >= least
