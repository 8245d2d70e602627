"""`routed_lora` and `routed_lora_` against the float64 reference, forward and every gradient."""

from __future__ import annotations

import pytest
import torch

from meteora_registry.kernels.reference import TOLERANCES, gradient_tolerance, relative_error
from meteora_registry.kernels.routed_lora import routed_lora, routed_lora_
from support.routed_cases import Operands, operands

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
RANKS = {
    "equal": [8] * 6,
    "ragged": [8, 64, 16, 8, 24],
    "unpadded": [3, 1, 17, 5],
    "absent": [8, 0, 8, 0],
    "mostly-absent": [0, 0, 8],
    "one": [16],
}
GRADIENTS = ("x", "A", "Bt", "weights")


def gradients(case: Operands, out: torch.Tensor, cotangent: torch.Tensor) -> dict[str, torch.Tensor]:
    leaves = [getattr(case, name) for name in GRADIENTS]
    return dict(zip(GRADIENTS, torch.autograd.grad(out, leaves, cotangent.to(out.dtype)), strict=True))


def requiring_gradients(case: Operands) -> Operands:
    for name in GRADIENTS:
        getattr(case, name).requires_grad_()
    return case


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("T", [0, 1, 3, 40])
def test_output_is_the_reference(ranks: str, T: int, dtype: torch.dtype) -> None:
    case = operands(RANKS[ranks], T=T, k=min(2, len(RANKS[ranks])), dtype=dtype)
    out = case.routed()
    assert (out.dtype, out.shape) == (dtype, (T, 24))
    assert relative_error(out, case.reference()) <= TOLERANCES[dtype]


@pytest.mark.parametrize("k", range(1, 9))
@pytest.mark.parametrize("T", [1, 30])
def test_any_number_of_slots_adds_up(k: int, T: int) -> None:
    case = operands([8, 3, 0, 8, 1, 16, 2, 8], T=T, k=k)
    assert relative_error(case.routed(), case.reference()) <= TOLERANCES[torch.float32]


@pytest.mark.parametrize(("h", "D"), [(1, 1), (7, 33), (129, 5), (64, 257)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_odd_features_are_no_special_case(h: int, D: int, dtype: torch.dtype) -> None:
    case = operands([8, 5, 8], T=11, h=h, D=D, dtype=dtype)
    assert relative_error(case.routed(), case.reference()) <= TOLERANCES[dtype]


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 1, 3)], ids=str)
def test_leading_dimensions_are_kept(leading: tuple[int, ...]) -> None:
    case = operands([8, 8, 4], leading=leading)
    out = case.routed()
    assert out.shape == (*leading, 24)
    assert relative_error(out, case.reference()) <= TOLERANCES[torch.float32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("T", [1, 40])
def test_gradients_are_the_references(ranks: str, T: int, dtype: torch.dtype) -> None:
    case = requiring_gradients(operands(RANKS[ranks], T=T, k=min(2, len(RANKS[ranks])), dtype=dtype))
    double = requiring_gradients(detached_double(case))
    cotangent = torch.randn(T, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = gradients(case, case.routed(), cotangent)
    expected = gradients(double, double.reference(), cotangent.double())
    for name in GRADIENTS:
        assert found[name].dtype == getattr(case, name).dtype
        assert relative_error(found[name], expected[name]) <= gradient_tolerance(dtype, found[name]), name


def detached_double(case: Operands) -> Operands:
    double = case.to_double()
    return Operands(**{n: v.detach() if isinstance(v, torch.Tensor) else v for n, v in vars(double).items()})


@pytest.mark.parametrize("ranks", [[2, 3], [2, 0, 3], [2, 2, 2]], ids=str)
@pytest.mark.parametrize("T", [1, 4])
def test_gradients_pass_gradcheck(ranks: list[int], T: int) -> None:
    case = requiring_gradients(detached_double(operands(ranks, T=T, h=3, D=4)))

    def routed(x: torch.Tensor, A: torch.Tensor, Bt: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return routed_lora(x, A, Bt, case.offsets, case.scaling, case.selection, weights)

    assert torch.autograd.gradcheck(routed, (case.x, case.A, case.Bt, case.weights))


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    case = operands([8, 8, 8])
    case.x.requires_grad_()
    case.weights.requires_grad_()
    with pytest.raises(RuntimeError) as caught:
        torch.autograd.grad(case.routed().sum(), case.x, create_graph=True)
    assert str(caught.value) == (
        "`routed_lora` has no second derivative, expected a backward without `create_graph=True`"
    )


def test_frozen_factors_keep_no_gradient_and_save_no_input() -> None:
    case = operands([8, 8, 8])
    case.x.requires_grad_()
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = case.routed()
    out.sum().backward()
    assert case.A.grad is None
    assert case.Bt.grad is None
    assert not any(tensor.data_ptr() == case.x.data_ptr() for tensor in saved)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("T", [1, 40])
def test_adding_in_place_is_base_plus_routed(T: int, dtype: torch.dtype) -> None:
    case = operands([8, 0, 24, 8], T=T, dtype=dtype)
    base = torch.randn(T, 24).to(dtype)
    out = base.clone()
    assert routed_lora_(out, **vars(case)) is out
    assert relative_error(out, base.double() + case.reference()) <= TOLERANCES[dtype]


def test_adding_into_a_slice_of_a_wider_output_leaves_the_rest() -> None:
    case = operands([8, 8], T=6)
    wide = torch.zeros(6, 60)
    routed_lora_(wide[:, 10:34], **vars(case))
    assert relative_error(wide[:, 10:34], case.reference()) <= TOLERANCES[torch.float32]
    assert not wide[:, :10].any()
    assert not wide[:, 34:].any()


@pytest.mark.parametrize("T", [1, 40])
def test_an_adapter_selected_twice_counts_twice(T: int) -> None:
    case = requiring_gradients(operands([8, 8, 3], T=T, k=2))
    case.selection = case.selection[:, :1].expand(-1, 2).contiguous()
    double = requiring_gradients(detached_double(case))
    out, expected = case.routed(), double.reference()
    assert relative_error(out, expected) <= TOLERANCES[torch.float32]
    cotangent = torch.randn(T, 24)
    found = gradients(case, out, cotangent)
    reference = gradients(double, expected, cotangent.double())
    for name in GRADIENTS:
        assert relative_error(found[name], reference[name]) <= TOLERANCES[torch.float32], name


@pytest.mark.parametrize("T", [1, 12])
def test_adapters_of_rank_zero_add_exactly_nothing(T: int) -> None:
    case = requiring_gradients(operands([0, 8, 0], T=T, k=2))
    case.selection = torch.tensor([[0, 2]]).expand(T, 2).contiguous()
    out = case.routed()
    assert torch.equal(out, torch.zeros(T, 24))
    for grad in gradients(case, out, torch.ones(T, 24)).values():
        assert not grad.any()


def test_a_linear_without_any_row_adds_exactly_nothing() -> None:
    case = requiring_gradients(operands([0, 0], T=4))
    out = case.routed()
    assert torch.equal(out, torch.zeros(4, 24))
    for grad in gradients(case, out, torch.ones(4, 24)).values():
        assert not grad.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("T", [1, 40])
def test_repeated_runs_are_bit_identical(ranks: str, T: int, dtype: torch.dtype) -> None:
    case = requiring_gradients(operands(RANKS[ranks], T=T, k=min(2, len(RANKS[ranks])), dtype=dtype))
    cotangent = torch.randn(T, 24)
    first, second = case.routed(), case.routed()
    assert torch.equal(first, second)
    once, again = gradients(case, first, cotangent), gradients(case, second, cotangent)
    assert all(torch.equal(once[name], again[name]) for name in GRADIENTS)


@pytest.mark.parametrize("T", [2, 40])
def test_a_poisoned_token_stays_alone(T: int) -> None:
    case = requiring_gradients(operands([8, 8, 3, 0], T=T))
    clean = case.routed().detach()
    with torch.no_grad():
        case.x[1] = float("nan")
    out = case.routed()
    others = torch.arange(T) != 1
    torch.testing.assert_close(out[others], clean[others])
    cotangent = torch.ones(T, 24)
    cotangent[1] = float("nan")
    found = gradients(case, out, cotangent)
    assert found["x"][others].isfinite().all()
    assert found["weights"][others].isfinite().all()


@pytest.mark.parametrize("T", [2, 40])
def test_a_poisoned_token_spares_the_adapters_it_did_not_choose(T: int) -> None:
    case = requiring_gradients(operands([8, 8, 3], T=T, k=1))
    case.selection = (torch.arange(T) == 0).long().unsqueeze(1)
    with torch.no_grad():
        case.x[0] = float("nan")
    cotangent = torch.ones(T, 24)
    cotangent[0] = float("nan")
    found = gradients(case, case.routed(), cotangent)
    for name in ("A", "Bt"):
        assert found[name][:8].isfinite().all()
        assert found[name][8:16].isnan().any()
        assert not found[name][16:].any()


@pytest.mark.parametrize("T", [1, 4, 40])
def test_an_overflow_of_an_unselected_adapter_stays_out(T: int) -> None:
    case = operands([8, 8, 8], T=T, k=1)
    case.selection.zero_()
    case.x.fill_(3e38)
    case.A[:8] = 1e-38
    out = case.routed()
    assert (case.x @ case.A[8:].T).isinf().any()
    assert out.isfinite().all()
    assert relative_error(out, case.reference()) <= TOLERANCES[torch.float32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("T", [1, 8, 300])
def test_activations_of_ten_thousand_are_finite_and_right(T: int, dtype: torch.dtype) -> None:
    case = operands([8] * 5, T=T, h=256, D=40, dtype=dtype)
    case.x.mul_(1e4)
    case.A.mul_(8)
    case.Bt.mul_(1e-3)
    assert (case.x.double() @ case.A.double().T).abs().max() > 7e4
    out = case.routed()
    assert out.isfinite().all()
    assert relative_error(out, case.reference()) <= TOLERANCES[dtype]


def test_zero_tails_change_nothing() -> None:
    padded, plain = operands([8, 16, 8], T=20), operands([5, 9, 8], T=20)
    padded.A.zero_()
    padded.Bt.zero_()
    for start, small, rank in ((0, 0, 5), (8, 5, 9), (24, 14, 8)):
        padded.A[start : start + rank] = plain.A[small : small + rank]
        padded.Bt[start : start + rank] = plain.Bt[small : small + rank]
    padded.x, padded.selection, padded.weights = plain.x, plain.selection, plain.weights
    assert relative_error(padded.routed(), plain.reference()) <= TOLERANCES[torch.float32]


def test_scaling_is_never_rounded_to_the_factors_dtype() -> None:
    case = operands([8, 8], T=20, k=1, dtype=torch.bfloat16)
    case.scaling = [1.0 + 2.0**-9, 3.0]
    assert relative_error(case.routed(), case.reference()) <= TOLERANCES[torch.bfloat16]
    exact = operands([8, 8], T=20, k=1)
    exact.scaling = [1.0 + 2.0**-9, 3.0]
    assert relative_error(exact.routed(), exact.reference()) <= TOLERANCES[torch.float32]


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("T", [1, 20])
def test_autocast_changes_nothing(T: int, grad: bool) -> None:
    case = operands([8, 8, 8], T=T)
    case.x.requires_grad_(grad)
    expected = case.routed()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = case.routed()
    assert torch.equal(found, expected)


def test_a_layout_first_seen_in_inference_mode_still_trains() -> None:
    case = operands([8, 8, 8], T=20)
    case.scaling = [0.123, 0.456, 0.789]
    with torch.inference_mode():
        case.routed()
    requiring_gradients(case).routed().sum().backward()
    assert case.x.grad is not None


def test_strided_input_is_taken_as_it_is() -> None:
    case = operands([8, 8], T=6)
    wide = torch.randn(6, 40)
    wide[:, 4:20] = case.x
    expected = case.routed()
    case.x = wide[:, 4:20]
    torch.testing.assert_close(case.routed(), expected)


def test_a_default_device_elsewhere_changes_nothing() -> None:
    case = operands([8, 24, 8], T=30)
    case.scaling = [0.321, 0.654, 0.987]
    with torch.device("meta"):
        out = routed_lora(**vars(case))
    assert relative_error(out, case.reference()) <= TOLERANCES[torch.float32]
