"""`BoundAdapters`: the reference's output in the short way, and bound again when the tensors change."""

from __future__ import annotations

from math import inf, nan

import pytest
import torch

from meteora_registry.kernels.bound import BoundAdapters
from meteora_registry.kernels.gate_kinds import GATE_KINDS
from meteora_registry.kernels.reference import TOLERANCES, reference_routed_lora, relative_error
from meteora_registry.kernels.routing import FixedRouting, Gate, Routing, select_top_k
from support.routed_cases import Operands, operands

DTYPES = [torch.float32, torch.float64]
RANKS = [8, 0, 24, 8]
# Of weights from logits in fp32, and of outputs that they weigh; measured 4e-7 and 7e-7.
ROUNDED = 2e-6
FIXED = {
    "one": FixedRouting.to(2),
    "two": FixedRouting((3, 0), (0.75, 0.25)),
    "twice": FixedRouting((0, 0), (0.5, 0.5)),
    "absent": FixedRouting((1, 2), (0.5, 0.5)),
    "nobody": FixedRouting((2,), (0.0,)),
}


def bound(case: Operands) -> BoundAdapters:
    return BoundAdapters(case.A, case.Bt, case.offsets, case.scaling)


def exact_routing(gate: Gate, x: torch.Tensor) -> Routing:
    """Return the gate's routing of x [..., h] in float64, by the definition of its kind."""
    logits = GATE_KINDS[gate.kind].define(gate.weight.double(), x.double(), gate.eps)
    logits = logits if gate.bias is None else logits + gate.bias
    return select_top_k(logits, gate.top_k, temperature=gate.temperature)


def expected(case: Operands, base: torch.Tensor, routing: Routing) -> torch.Tensor:
    arguments = {**vars(case), "selection": routing.selection, "weights": routing.weights}
    return base.double() + reference_routed_lora(**arguments)


@pytest.fixture(autouse=True)
def _without_gradients() -> object:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("routing", FIXED.values(), ids=FIXED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("leading", [(), (1,), (1, 5), (2, 20)], ids=str)
def test_fixed_routing_adds_what_the_reference_does(
    leading: tuple[int, ...], dtype: torch.dtype, routing: FixedRouting
) -> None:
    case = operands(RANKS, leading=leading, dtype=dtype)
    base = torch.randn(*leading, 24).to(dtype)
    out = base.clone()
    bound(case).add_fixed_(out, case.x, routing)
    reference = expected(case, base, routing.for_tokens(leading, "cpu"))
    assert relative_error(out, reference) <= TOLERANCES[dtype]


@pytest.mark.parametrize("kind", GATE_KINDS)
@pytest.mark.parametrize("bias", [None, torch.tensor([0.5, -1.0, 0.25, 2.0])], ids=["no-bias", "bias"])
@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("leading", [(), (1, 1), (3, 1)], ids=str)
def test_gate_chooses_and_adds_as_the_gated_call(
    leading: tuple[int, ...], dtype: torch.dtype, top_k: int, bias: torch.Tensor | None, kind: str
) -> None:
    case = operands(RANKS, leading=leading, dtype=dtype)
    torch.manual_seed(0)
    gate = Gate(torch.randn(4, 16), bias, kind, top_k, temperature=0.5)
    base = torch.randn(*leading, 24).to(dtype)
    out = base.clone()
    found = bound(case).add_gated_(out, case.x, gate)
    routing = found if isinstance(found, Routing) else found.for_tokens(leading, "cpu")
    exact = exact_routing(gate, case.x)
    assert torch.equal(routing.selection, exact.selection)
    torch.testing.assert_close(routing.weights.double(), exact.weights, rtol=0, atol=ROUNDED)
    torch.testing.assert_close(gate.route(case.x).weights.double(), exact.weights, rtol=0, atol=ROUNDED)
    assert relative_error(out, expected(case, base, exact)) <= max(TOLERANCES[dtype], ROUNDED)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize(
    "bias", [[1.0, nan, 2.0, nan], [1.0, inf, 2.0, inf], [1.0, -inf, 2.0, -inf]], ids=["nan", "inf", "banned"]
)
def test_logits_that_are_not_finite_count_as_in_the_gated_call(bias: list[float], top_k: int) -> None:
    case = operands([8, 8, 8, 8], leading=(1,))
    gate = Gate(torch.zeros(4, 16), torch.tensor(bias), "linear", top_k)
    found = bound(case).add_gated_(torch.zeros(1, 24), case.x, gate)
    assert isinstance(found, FixedRouting)
    routing, halves = found.for_tokens((1,), "cpu"), gate.route(case.x)
    assert torch.equal(routing.selection, halves.selection)
    torch.testing.assert_close(routing.weights, halves.weights, equal_nan=True)


def test_equal_logits_go_to_the_lowest_adapters() -> None:
    case = operands([8, 8, 8, 8], leading=(1,))
    gate = Gate(torch.zeros(4, 16), torch.tensor([0.0, 1.0, 1.0, 1.0]), "linear", 2)
    assert bound(case).add_gated_(torch.zeros(1, 24), case.x, gate) == FixedRouting((1, 2), (0.5, 0.5))


@pytest.mark.parametrize("kind", GATE_KINDS)
def test_gate_of_a_token_without_length_decides_by_its_bias(kind: str) -> None:
    case = operands(RANKS, leading=(1,))
    gate = Gate(torch.randn(4, 16), torch.tensor([0.0, 1.0, 3.0, 2.0]), kind, 1)
    found = bound(case).add_gated_(torch.zeros(1, 24), torch.zeros(1, 16), gate)
    assert found == FixedRouting.to(2)


def test_token_of_a_longer_sequence_is_taken_in_place() -> None:
    case = operands(RANKS, leading=(1, 5))
    last = case.x[:, -1:]
    alone, out = torch.zeros(1, 1, 24), torch.zeros(1, 1, 24)
    bound(case).add_fixed_(alone, last.clone(), FIXED["two"])
    bound(case).add_fixed_(out, last, FIXED["two"])
    assert torch.equal(out, alone)


@pytest.mark.parametrize("leading", [(1,), (1, 5)], ids=str)
def test_half_precision_output_takes_wider_factors_and_is_rounded_once(leading: tuple[int, ...]) -> None:
    case = operands(RANKS, leading=leading)
    base = torch.randn(*leading, 24).bfloat16()
    case.x = case.x.bfloat16()
    wide = Operands(**{**vars(case), "x": case.x.float()})
    found, routing = base.clone(), FIXED["two"]
    bound(case).add_fixed_(found, case.x, routing)
    exact = expected(wide, base, routing.for_tokens(leading, "cpu"))
    assert torch.equal(found, exact.float().bfloat16())


def test_factors_changed_in_place_are_seen_and_moved_ones_are_not_held() -> None:
    case = operands(RANKS, leading=(1,))
    adapters = bound(case)
    case.A.mul_(2)
    assert adapters.holds(case.A, case.Bt)
    out = torch.zeros(1, 24)
    adapters.add_fixed_(out, case.x, FIXED["one"])
    reference = expected(case, torch.zeros(1, 24), FIXED["one"].for_tokens((1,), "cpu"))
    assert relative_error(out, reference) <= TOLERANCES[torch.float32]
    assert not adapters.holds(case.A.clone(), case.Bt)
    assert not adapters.holds(case.A, case.Bt.clone())


def test_parameter_is_followed_to_other_storage() -> None:
    case = operands(RANKS)
    parameter = torch.nn.Parameter(case.A)
    adapters = BoundAdapters(parameter, case.Bt, case.offsets, case.scaling)
    assert adapters.holds(parameter, case.Bt)
    parameter.data = parameter.data.clone()
    assert not adapters.holds(parameter, case.Bt)


def test_gate_is_checked_when_it_is_first_used() -> None:
    case = operands(RANKS, leading=(1,))
    with pytest.raises(ValueError, match="`gate` chooses among 3 adapters, expected 4"):
        bound(case).add_gated_(torch.zeros(1, 24), case.x, Gate(torch.zeros(3, 16), None, "linear", 1))


def test_factors_are_checked_when_they_are_bound() -> None:
    case = operands(RANKS)
    with pytest.raises(ValueError, match="`Bt` has 39 rows, expected 40"):
        BoundAdapters(case.A, case.Bt[1:], case.offsets, case.scaling)


def test_output_wider_than_the_factors_goes_the_general_way() -> None:
    case = operands(RANKS, leading=(1,))
    assert not bound(case).serves(torch.zeros(1, 24, dtype=torch.float64), case.x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_factors_in_half_precision_go_the_general_way(dtype: torch.dtype) -> None:
    case = operands(RANKS, leading=(1,), dtype=dtype)
    assert not bound(case).serves(torch.zeros(1, 24, dtype=dtype), case.x)


def test_gradients_and_autocast_go_the_general_way() -> None:
    case = operands(RANKS, leading=(1,))
    adapters, out = bound(case), torch.zeros(1, 24)
    assert adapters.serves(out, case.x)
    with torch.enable_grad():
        assert not adapters.serves(out, case.x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not adapters.serves(out, case.x)
    assert not adapters.serves(torch.zeros(2, 48)[:, ::2], case.x)


def test_fixed_routing_of_no_tokens_adds_nothing() -> None:
    case = operands(RANKS, leading=(0,))
    out = torch.zeros(0, 24)
    bound(case).add_fixed_(out, case.x, FIXED["two"])
    assert out.shape == (0, 24)
