from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from meteora_registry.fuser.gates import arrow_directions, arrow_gate, normal_gate
from support.examples import examples


def random_pair(
    out_features: int, rank: int, in_features: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rank, in_features, generator=generator),
        torch.randn(out_features, rank, generator=generator),
    )


@examples(30)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 12), st.integers(0, 99))
def test_arrow_vector_is_the_one_that_the_product_amplifies_most(
    out_features: int, rank: int, in_features: int, seed: int
) -> None:
    A, B = random_pair(out_features, rank, in_features, seed)
    vector = arrow_directions([(A, B)])[0]
    product = B.double() @ A.double()
    largest = torch.linalg.matrix_norm(product, ord=2)
    assert torch.linalg.vector_norm(vector).item() == pytest.approx(1, abs=1e-12)
    assert torch.linalg.vector_norm(product @ vector).item() == pytest.approx(largest.item(), rel=1e-10)


def test_arrow_vector_has_its_largest_entry_positive() -> None:
    for seed in range(8):
        vector = arrow_directions([random_pair(6, 3, 5, seed)])[0]
        assert vector[vector.abs().argmax()] > 0


def test_arrow_vector_of_an_untrained_adapter_is_zero() -> None:
    A, _ = random_pair(6, 3, 5)
    assert not arrow_directions([(A, torch.zeros(6, 3))]).any()


def test_arrow_vectors_of_members_of_several_ranks_are_those_of_each_alone() -> None:
    pairs = [random_pair(6, rank, 5, rank) for rank in (3, 1, 4, 3)]
    alone = torch.cat([arrow_directions([pair]) for pair in pairs])
    assert torch.allclose(arrow_directions(pairs), alone, rtol=0, atol=1e-14)


def test_arrow_vector_survives_columns_of_very_different_size() -> None:
    A, B = random_pair(96, 4, 64)
    product = B.double() @ A.double()
    # Squared, these would differ by 1e48 and float64 would keep the largest alone.
    sizes = torch.tensor([1e12, 1e-12, 1.0, 1e6], dtype=torch.float64)
    vector = arrow_directions([(A.double() / sizes[:, None], B.double() * sizes)])[0]
    largest = torch.linalg.matrix_norm(product, ord=2).item()
    assert torch.linalg.vector_norm(product @ vector).item() == pytest.approx(largest, rel=1e-12)


def test_arrow_vector_is_zero_where_the_factors_cancel() -> None:
    A, B = random_pair(6, 1, 5)
    assert not arrow_directions([(torch.cat([A, A]), torch.cat([B, -B], dim=1))]).any()


def test_arrow_vector_of_factors_that_are_not_finite_is_zero() -> None:
    A, B = random_pair(6, 3, 5)
    spoilt = A.clone()
    spoilt[0, 0] = float("nan")
    rows = arrow_directions([(spoilt, B), (A, B)])
    assert not rows[0].any()
    assert torch.equal(rows[1], arrow_directions([(A, B)])[0])


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
