"""Laws of routed LoRA over shapes drawn by hypothesis, forward and backward, against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from meteora_registry.kernels.reference import TOLERANCES, gradient_tolerance, relative_error
from support.examples import examples
from support.routed_cases import Operands, is_floating, operands

pytest.importorskip("hypothesis")
from hypothesis import given
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


def differentiated(
    case: Operands, compute: Callable[[Operands], torch.Tensor], cotangent: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the output and every gradient of `compute`, by name."""
    leaves = {name: getattr(case, name).detach().requires_grad_() for name in GRADIENTS}
    out = compute(Operands(**{**vars(case), **leaves}))
    found = torch.autograd.grad(
        out, list(leaves.values()), cotangent.to(out.dtype), allow_unused=True, materialize_grads=True
    )
    return {"out": out.detach(), **dict(zip(GRADIENTS, found, strict=True))}


def absolute(case: Operands) -> Operands:
    """Return the operands without signs: their reference is the size of the terms that a sum cancels."""
    return Operands(**{n: v.abs() if is_floating(v) else v for n, v in vars(case.to_double()).items()})


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@examples(12)
@given(st.data())
def test_output_and_gradients_are_the_references(dtype: torch.dtype, data: st.DataObject) -> None:
    case = data.draw(cases(dtype))
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(case.x.shape[0], case.Bt.shape[1], generator=generator).to(dtype)
    found = differentiated(case, Operands.routed, cotangent)
    expected = differentiated(case.to_double(), Operands.reference, cotangent)
    terms = differentiated(absolute(case), Operands.reference, cotangent.abs())
    for name, tensor in found.items():
        largest = terms[name].abs().max().item() if terms[name].numel() else 0.0
        error = (tensor.double() - expected[name]).abs()
        bound = gradient_tolerance(dtype, tensor) * largest
        assert not error.numel() or error.max().item() <= bound, name


@examples(12)
@given(cases(torch.float64))
def test_each_token_is_served_alone(case: Operands) -> None:
    together = case.routed()
    for t in range(0, case.x.shape[0], 7):
        alone = Operands(
            **{**vars(case), **{n: getattr(case, n)[t : t + 1] for n in ("x", "selection", "weights")}}
        )
        assert relative_error(alone.routed()[0], together[t]) <= TOLERANCES[torch.float64]


@examples(12)
@given(cases(torch.float64), st.floats(-4, 4, allow_subnormal=False))
def test_output_is_linear_in_the_weights(case: Operands, factor: float) -> None:
    case = case.to_double()
    expected = factor * case.routed()
    case.weights = case.weights * factor
    assert relative_error(case.routed(), expected) <= TOLERANCES[torch.float64]
