"""Routing: logits in fp32, ties to the lowest index, softmax over the kept."""

from __future__ import annotations

import pytest
import torch

from meteora_registry.kernels.gate_kinds import GATE_KINDS
from meteora_registry.kernels.routing import FixedRouting, gate_logits, select_top_k
from support.gate_definitions import defined_logits

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", GATE_KINDS)
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
def test_logits_follow_the_definition_in_fp32(kind: str, dtype: torch.dtype, with_bias: bool) -> None:
    torch.manual_seed(0)
    x, gate = torch.randn(2, 3, 16).to(dtype), torch.randn(5, 16)
    bias = torch.randn(5) if with_bias else None
    logits = gate_logits(x, gate, bias, kind=kind)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), defined_logits(x, gate, bias, kind), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", GATE_KINDS)
def test_logits_ignore_autocast(kind: str) -> None:
    x, gate = torch.randn(4, 64), torch.randn(5, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gate_logits(x, gate, kind=kind)
    assert torch.equal(inside, gate_logits(x, gate, kind=kind))


@pytest.mark.parametrize("length", [1e-8, 1e-6, 1.0], ids=str)
def test_normalised_logits_add_eps_to_the_length(length: float) -> None:
    x, gate = torch.tensor([[length, 0.0]]), torch.tensor([[1.0, 0.0]])
    logits = gate_logits(x, gate, kind="normalised", eps=1e-6)
    assert logits.item() == pytest.approx(length / (length + 1e-6), rel=1e-5)


def test_normalised_logits_of_a_zero_token_are_the_bias() -> None:
    x = torch.zeros(1, 8, requires_grad=True)
    logits = gate_logits(x, torch.randn(3, 8), torch.tensor([1.0, 2.0, 3.0]), kind="normalised")
    assert logits.tolist() == [[1.0, 2.0, 3.0]]
    logits.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("kind", GATE_KINDS)
def test_logits_carry_gradients_to_input_gate_and_bias(kind: str) -> None:
    torch.manual_seed(0)
    x, gate, bias = (torch.randn(*shape, requires_grad=True) for shape in ((4, 6), (3, 6), (3,)))
    gate_logits(x, gate, bias, kind=kind).pow(2).sum().backward()
    found = [tensor.grad for tensor in (x, gate, bias)]
    doubles = [tensor.detach().double().requires_grad_() for tensor in (x, gate, bias)]
    defined_logits(*doubles, kind).pow(2).sum().backward()
    for grad, double in zip(found, doubles, strict=True):
        assert grad is not None
        torch.testing.assert_close(grad.double(), double.grad, rtol=1e-4, atol=1e-4)


def test_top_k_orders_by_logit_and_softmaxes_what_it_keeps() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    routing = select_top_k(logits, 2, temperature=0.5)
    assert routing.selection.tolist() == [[1, 3]]
    torch.testing.assert_close(routing.weights, torch.softmax(torch.tensor([[6.0, 4.0]]), dim=-1))


@pytest.mark.parametrize("adapters", [2, 5, 28, 128, 512])
@pytest.mark.parametrize("k", [1, 2])
def test_ties_go_to_the_lowest_index(adapters: int, k: int) -> None:
    logits = torch.zeros(33, adapters)
    logits[1::2, -1] = -1.0
    assert select_top_k(logits, k).selection.tolist() == [list(range(k))] * 33


def test_equal_logits_of_either_sign_of_zero_tie() -> None:
    assert select_top_k(torch.tensor([[-0.0, 0.0, -1.0]]), 2).selection.tolist() == [[0, 1]]


def test_banned_adapters_come_last_and_once_each() -> None:
    routing = select_top_k(torch.tensor([[-torch.inf, 1.0, -torch.inf]]), 3)
    assert routing.selection.tolist() == [[1, 0, 2]]
    assert routing.weights.tolist() == [[1.0, 0.0, 0.0]]


def test_one_slot_weighs_exactly_one_and_passes_an_exactly_zero_gradient() -> None:
    logits = (torch.randn(64, 7) * 50).requires_grad_()
    weights = select_top_k(logits, 1, temperature=0.3).weights
    assert torch.equal(weights, torch.ones(64, 1))
    weights.sum().backward()
    assert torch.equal(logits.grad, torch.zeros(64, 7))


def test_top_k_is_differentiable_in_the_logits() -> None:
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: select_top_k(z, 3, temperature=0.7).weights, (logits,))


def test_fixed_route_sends_every_token_to_one_adapter() -> None:
    routing = FixedRouting.to(3).for_tokens((2, 4), "cpu")
    assert (routing.selection == 3).all()
    assert (routing.weights == 1).all()
    assert routing.selection.shape == routing.weights.shape == (2, 4, 1)
    assert (routing.selection.dtype, routing.weights.dtype) == (torch.int64, torch.float32)


X, GATE = torch.zeros(2, 4), torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: gate_logits(X, GATE, kind="cosine"),
            "gate kind is `cosine`, expected one of `linear`, `absolute`, `normalised`",
        ),
        (lambda: gate_logits(X.long(), GATE, kind="linear"), "`x` is torch.int64, expected a floating dtype"),
        (
            lambda: gate_logits(X, GATE.bfloat16(), kind="linear"),
            "`gate` is torch.bfloat16, expected torch.float32; keep gates out of a model-wide cast",
        ),
        (
            lambda: gate_logits(X, GATE.T, kind="linear"),
            "`gate` is [4, 3] for `x` [2, 4], expected [L, h] with h the last of `x`",
        ),
        (
            lambda: gate_logits(X, GATE, torch.zeros(4), kind="linear"),
            "gate bias is torch.float32 [4], expected torch.float32 [3]",
        ),
        (
            lambda: select_top_k(X, 5),
            "top_k is 5 for logits [2, 4], expected 1 to the number of adapters, the last dimension",
        ),
        (
            lambda: select_top_k(X, 0),
            "top_k is 0 for logits [2, 4], expected 1 to the number of adapters, the last dimension",
        ),
        (lambda: select_top_k(X, 1, temperature=0.0), "temperature is 0.0, expected a number above 0"),
        (
            lambda: select_top_k(X.bfloat16(), 1),
            "`logits` is torch.bfloat16, expected torch.float32; half types tie too often",
        ),
    ],
    ids=["kind", "integer", "gate-dtype", "gate-shape", "bias", "k-high", "k-zero", "temperature", "half"],
)
def test_routing_refuses_at_the_door(call: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == message
