"""`gated_lora_`: the gate's own routing, then what it routes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from meteora_registry.kernels.gate_kinds import GATE_KINDS
from meteora_registry.kernels.routed_lora import gated_lora_, routed_lora_
from meteora_registry.kernels.routing import Gate, Routing
from support.routed_cases import Operands, operands


def gated(case: Operands, gate: Gate, out: torch.Tensor) -> Routing:
    return gated_lora_(out, case.x, case.A, case.Bt, case.offsets, case.scaling, gate)


@pytest.mark.parametrize("kind", GATE_KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("leading", [(), (1,), (2, 20)], ids=str)
def test_gated_call_is_its_two_halves(leading: tuple[int, ...], dtype: torch.dtype, kind: str) -> None:
    case = operands([8, 0, 24, 8], leading=leading, dtype=dtype)
    gate = Gate(torch.randn(4, 16), torch.randn(4), kind, 2, temperature=0.5)
    base = torch.randn(*leading, 24).to(dtype)
    found, expected = base.clone(), base.clone()
    routing, halves = gated(case, gate, found), gate.route(case.x)
    assert torch.equal(routing.selection, halves.selection)
    assert torch.equal(routing.weights, halves.weights)
    case.selection, case.weights = halves.selection, halves.weights
    assert torch.equal(found, routed_lora_(expected, **vars(case)))


def test_a_shared_decision_serves_the_next_linear() -> None:
    first, second = operands([8, 8, 8], T=6), operands([16, 0, 8], T=6, seed=1)
    routing = gated(first, Gate(torch.randn(3, 16), None, "linear", 2), torch.zeros(6, 24))
    second.selection, second.weights = routing.selection, routing.weights
    out = routed_lora_(torch.zeros(6, 24), **vars(second))
    torch.testing.assert_close(out.double(), second.reference(), rtol=1e-4, atol=1e-4)


def gate_of(adapters: int = 3, features: int = 16, *, top_k: int = 2, kind: str = "linear") -> Gate:
    return Gate(torch.zeros(adapters, features), None, kind, top_k)


REFUSALS: dict[str, tuple[Callable[[], Gate], str]] = {
    "adapters": (
        lambda: gate_of(4),
        "`gate` chooses among 4 adapters, expected 3, as in `scaling`",
    ),
    "features": (
        lambda: gate_of(features=8),
        "`gate` is [3, 8] for `x` [5, 16], expected [L, h] with h the last of `x`",
    ),
    "kind": (
        lambda: gate_of(kind="cosine"),
        "gate kind is `cosine`, expected one of `linear`, `absolute`, `normalised`",
    ),
    "slots": (
        lambda: gate_of(top_k=4),
        "top_k is 4 for logits [3], expected 1 to the number of adapters, the last dimension",
    ),
    "device": (
        lambda: Gate(torch.zeros(3, 16, device="meta"), None, "linear", 2),
        "`gate` is on meta and `x` on cpu, expected one device",
    ),
    "bias-device": (
        lambda: Gate(torch.zeros(3, 16), torch.zeros(3, device="meta"), "linear", 2),
        "`bias` is on meta and `x` on cpu, expected one device",
    ),
    "strided": (
        lambda: Gate(torch.zeros(16, 3).T, None, "linear", 2),
        "`gate` is a strided view, expected contiguous rows; call `.contiguous()` once",
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_gate_that_does_not_fit_is_refused(refusal: str) -> None:
    make, message = REFUSALS[refusal]
    with pytest.raises(ValueError) as caught:
        gated(operands([8, 0, 8]), make(), torch.zeros(5, 24))
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_gated_call_refuses_to_lose_a_gradient(name: str) -> None:
    gate = Gate(torch.zeros(3, 16), torch.zeros(3), "linear", 2)
    getattr(gate, name).requires_grad_()
    with pytest.raises(RuntimeError, match=r"^`gated_lora_` writes into its output and passes no gradient"):
        gated(operands([8, 0, 8]), gate, torch.zeros(5, 24))
