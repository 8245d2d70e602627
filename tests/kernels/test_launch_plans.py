"""Plans of launches: kept by bucket of tokens, the same as made anew, and not used while rows are tried.

No GPU is needed: the kernels are replaced by recorders, the tensors have no storage.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton")
from meteora_registry.kernels import gpu_launch, gpu_products, gpu_table
from meteora_registry.kernels import layout as layouts
from meteora_registry.kernels.gpu_table import BUCKET_TOKENS, Blocks, read_table
from meteora_registry.kernels.layout import layout_of, layout_tensors
from meteora_registry.kernels.routing import Gate, Routing
from support.gpu_compilation import Call, Recorder

PLANS = (gpu_launch._routed_plans, gpu_launch._gated_plans, gpu_launch._route_plans)
LAYOUT = layout_of([0, 8, 8, 72], [1.0, 2.0, 3.0])


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Call]]:
    recorded: list[Call] = []
    for name in ("shrink", "expand", "project", "route", "spread"):
        kernel = getattr(gpu_launch, f"{name}_kernel")
        monkeypatch.setattr(gpu_launch, f"{name}_kernel", Recorder(kernel, recorded))
    monkeypatch.setattr(gpu_table, "architecture", lambda device: "default")
    yield recorded
    for plan in PLANS:
        plan.cache_clear()


def launch(T: int, *, features: int = 4096) -> None:
    """Make every launch that has a plan, of T tokens; in fp16, which takes no dense branch."""
    with torch.device("meta"):
        x, out = torch.empty(2, T, features, dtype=torch.float16)
        A, Bt = torch.empty(2, LAYOUT.rows, features, dtype=torch.float16)
        routing = Routing(torch.empty(T, 2, dtype=torch.int64), torch.empty(T, 2))
        gate = Gate(torch.empty(3, features), None, "linear", 2)
    gpu_products.gated_forward(x, A, Bt, LAYOUT, gate, out)
    gpu_products.forward(x, A, Bt, LAYOUT, routing)


def described(recorded: list[Call]) -> list[object]:
    """Return what a launch has besides its tensors."""
    plain = (int, float, str, bool)
    return [
        (call.grid, {n: v for n, v in call.arguments.items() if isinstance(v, plain)}, call.options)
        for call in recorded
    ]


@pytest.mark.parametrize("T", [1, 15, 16, 17, 63, 64, 4096])
def test_kept_plan_launches_what_a_fresh_one_does(T: int, calls: list[Call]) -> None:
    first = 1 + (T - 1) // BUCKET_TOKENS * BUCKET_TOKENS
    launch(first)
    calls.clear()
    launch(T)
    kept = described(calls)
    for plan in PLANS:
        plan.cache_clear()
    calls.clear()
    launch(T)
    assert kept == described(calls)


def test_tokens_of_one_bucket_share_their_plans() -> None:
    for T in (1, 9, 16):
        launch(T)
    assert [plan.cache_info().misses for plan in PLANS] == [1, 1, 0]
    launch(17)
    assert [plan.cache_info().misses for plan in PLANS] == [2, 2, 0]
    # So many that the routing is made before, and its output added to another.
    for T in (65, 80):
        launch(T)
    assert [plan.cache_info().misses for plan in PLANS] == [4, 2, 1]


def test_rows_that_are_tried_out_are_not_kept(monkeypatch: pytest.MonkeyPatch, calls: list[Call]) -> None:
    launch(1)
    row = Blocks(tokens=32, warps=8, stages=2, rank=64, bytes=64, features=64, programs=2)
    with monkeypatch.context() as patch:
        patch.setitem(gpu_table.OVERRIDES, "shrink", row)
        calls.clear()
        launch(1)
        assert next(c for c in calls if c.kernel.fn.__name__ == "shrink_kernel").options["num_warps"] == 8
    calls.clear()
    launch(1)
    assert next(c for c in calls if c.kernel.fn.__name__ == "shrink_kernel").options["num_warps"] == 4


def test_no_row_ends_within_a_bucket() -> None:
    for kernels in read_table().values():
        for rows in kernels.values():
            assert all((row["max_tokens"] or 0) % BUCKET_TOKENS == 0 for row in rows)
            assert all(row["tokens"] % BUCKET_TOKENS == 0 for row in rows)


def test_device_tensors_outlive_their_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured graph has their addresses alone; `meta` stands for a GPU."""
    there = torch.device("meta")
    kept = layout_tensors(LAYOUT, there, torch.float32)
    layout_tensors.cache_clear()
    layouts._layout.cache_clear()
    again = layout_of([0, 8, 8, 72], [1.0, 2.0, 3.0])
    assert again is not LAYOUT
    assert layout_tensors(again, there, torch.float32) is kept


def test_a_layout_first_met_in_a_capture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError) as caught:
        layout_tensors(LAYOUT, torch.device("cuda:0"), torch.float32)
    assert str(caught.value) == (
        "the offsets and scalings of these 3 adapters are not on `cuda:0` yet, and cannot be copied there "
        "while a CUDA graph is captured; call once with the same adapters first"
    )
