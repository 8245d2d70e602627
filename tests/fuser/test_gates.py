from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meteora_registry.fuser.gates import arrow_gate, normal_gate, top_right_singular_vector


def random_pair(
    out_features: int, rank: int, in_features: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rank, in_features, generator=generator),
        torch.randn(out_features, rank, generator=generator),
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 12), st.integers(0, 99))
def test_arrow_vector_is_the_one_that_the_product_amplifies_most(
    out_features: int, rank: int, in_features: int, seed: int
) -> None:
    A, B = random_pair(out_features, rank, in_features, seed)
    vector = top_right_singular_vector(A, B)
    product = B.double() @ A.double()
    largest = torch.linalg.matrix_norm(product, ord=2)
    assert torch.linalg.vector_norm(vector).item() == pytest.approx(1, abs=1e-12)
    assert torch.linalg.vector_norm(product @ vector).item() == pytest.approx(largest.item(), rel=1e-10)


def test_arrow_vector_has_its_largest_entry_positive() -> None:
    for seed in range(8):
        vector = top_right_singular_vector(*random_pair(6, 3, 5, seed))
        assert vector[vector.abs().argmax()] > 0


def test_arrow_vector_of_an_untrained_adapter_is_zero() -> None:
    A, _ = random_pair(6, 3, 5)
    assert not top_right_singular_vector(A, torch.zeros(6, 3)).any()


def test_arrow_gate_gives_an_absent_member_a_zero_row() -> None:
    gate = arrow_gate([random_pair(6, 3, 5), None, random_pair(6, 1, 5)], 5)
    assert gate.dtype == torch.float32
    assert gate.any(dim=1).tolist() == [True, False, True]


def test_normal_gate_depends_on_seed_and_module_alone() -> None:
    gate = normal_gate("a.q", 3, 5, seed=1)
    assert torch.equal(gate, normal_gate("a.q", 3, 5, seed=1))
    assert not torch.equal(gate, normal_gate("a.v", 3, 5, seed=1))
    assert not torch.equal(gate, normal_gate("a.q", 3, 5, seed=2))


def test_normal_gate_draws_the_same_numbers_for_ever() -> None:
    # Frozen: a change here changes the bytes of every bundle made with `--gate normal`.
    drawn = [round(value, 6) for value in normal_gate("model.q_proj", 1, 4, seed=0)[0].tolist()]
    assert drawn == FROZEN_DRAW


FROZEN_DRAW = [-0.010457, -0.019971, -0.00242, -0.0032]
