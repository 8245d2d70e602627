"""Laws of routed LoRA over shapes drawn by hypothesis, forward and backward, against float64."""

from __future__ import annotations

import pytest
import torch

from meteora_registry.kernels.tolerance import TOLERANCES, gradient_tolerance, relative_error
from support.routed_cases import Operands, operands

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

GRADIENTS = ("x", "A", "Bt", "weights")


@st.composite
def cases(draw: st.DrawFn, dtype: torch.dtype) -> Operands:
    ranks = draw(st.lists(st.sampled_from([0, 1, 3, 8, 16]), min_size=1, max_size=12))
    case = operands(
        ranks,
        T=draw(st.integers(1, 70)),
        h=draw(st.integers(1, 40)),
        D=draw(st.integers(1, 40)),
        k=draw(st.integers(1, min(8, len(ranks)))),
        dtype=dtype,
        seed=draw(st.integers(0, 2**32)),
    )
    if draw(st.booleans()):
        case.selection = case.selection % max(1, len(ranks) // 2)
    return case


def leaves(case: Operands) -> list[torch.Tensor]:
    return [getattr(case, name).detach().requires_grad_() for name in GRADIENTS]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_output_and_gradients_are_the_references(dtype: torch.dtype, data: st.DataObject) -> None:
    case = data.draw(cases(dtype))
    double = case.to_double()
    for name, single, wide in zip(GRADIENTS, leaves(case), leaves(double), strict=True):
        setattr(case, name, single)
        setattr(double, name, wide)
    out, expected = case.routed(), double.reference()
    assert relative_error(out, expected) <= TOLERANCES[dtype]
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = torch.autograd.grad(out, [getattr(case, name) for name in GRADIENTS], cotangent)
    wanted = torch.autograd.grad(
        expected, [getattr(double, name) for name in GRADIENTS], cotangent.double(), allow_unused=True
    )
    for name, grad, reference in zip(GRADIENTS, found, wanted, strict=True):
        reference = torch.zeros_like(grad) if reference is None else reference
        assert relative_error(grad, reference) <= gradient_tolerance(dtype, grad), name


@settings(max_examples=25, deadline=None)
@given(cases(torch.float64))
def test_each_token_is_served_alone(case: Operands) -> None:
    together = case.routed()
    for t in range(0, case.x.shape[0], 7):
        alone = Operands(
            **{**vars(case), **{n: getattr(case, n)[t : t + 1] for n in ("x", "selection", "weights")}}
        )
        assert relative_error(alone.routed()[0], together[t]) <= TOLERANCES[torch.float64]


@settings(max_examples=25, deadline=None)
@given(cases(torch.float64), st.floats(-4, 4, allow_subnormal=False))
def test_output_is_linear_in_the_weights(case: Operands, factor: float) -> None:
    case = case.to_double()
    expected = factor * case.routed()
    case.weights = case.weights * factor
    assert relative_error(case.routed(), expected) <= TOLERANCES[torch.float64]
