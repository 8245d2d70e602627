"""The table of tolerances catches kernels that are wrong in the ways kernels go wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from meteora_registry.kernels.reference import TOLERANCES, relative_error
from support.routed_cases import Operands, operands

RANKS = [5, 8, 3]
PADDED_RANK = 8


def scaled_by_padded_rank(case: Operands) -> None:
    case.scaling = [s * rank / PADDED_RANK for s, rank in zip(case.scaling, RANKS, strict=True)]


def one_row_of_the_neighbour(case: Operands) -> None:
    case.offsets = [0, 6, 13, 16]


def slots_swapped(case: Operands) -> None:
    case.weights = case.weights.flip(-1)


def last_slot_dropped(case: Operands) -> None:
    case.weights = torch.cat([case.weights[:, :1], torch.zeros_like(case.weights[:, 1:])], dim=-1)


def scaling_forgotten(case: Operands) -> None:
    case.scaling = [1.0] * len(case.scaling)


def one_rank_row_lost(case: Operands) -> None:
    case.Bt = case.Bt.clone()
    case.Bt[-1] = 0


def one_token_missed(case: Operands) -> None:
    case.weights = case.weights.clone()
    case.weights[-1] = 0


MISTAKES = (
    scaled_by_padded_rank,
    one_row_of_the_neighbour,
    slots_swapped,
    last_slot_dropped,
    scaling_forgotten,
    one_rank_row_lost,
    one_token_missed,
)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_wrong_kernel_is_caught(mistake: Callable[[Operands], None], dtype: torch.dtype) -> None:
    case = operands(RANKS, T=16, dtype=dtype)
    expected = case.reference()
    mistake(case)
    assert relative_error(case.routed(), expected) > TOLERANCES[dtype]


def test_error_is_relative_to_the_largest_reference_entry() -> None:
    assert relative_error(torch.tensor([1.0, -4.5]), torch.tensor([1.0, -4.0])) == 0.125


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_error_of_what_is_not_finite_is_infinite(wrong: float) -> None:
    assert relative_error(torch.tensor([1.0, wrong]), torch.ones(2)) == float("inf")


def test_a_zero_reference_asks_for_exact_zeros() -> None:
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0.0
    assert relative_error(torch.full((2,), 1e-30), torch.zeros(2)) == float("inf")


def test_error_of_nothing_is_zero() -> None:
    assert relative_error(torch.zeros(0, 3), torch.zeros(0, 3)) == 0.0
