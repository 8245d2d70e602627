"""Norms and angles of deltas, against the deltas themselves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meteora_registry.inspection.delta import Factors, Squares, measure, measure_rows
from meteora_registry.schemas.difference import DeltaChange

Matrix = npt.NDArray[np.float64]


def factors(seed: int, *, rank: int = 4, out: int = 12, inside: int = 20, scaling: float = 2.0) -> Factors:
    numbers = np.random.default_rng(seed)
    return Factors(numbers.normal(size=(rank, inside)), numbers.normal(size=(out, rank)), scaling)


def experts(seed: int, *, count: int, rank: int) -> Factors:
    numbers = np.random.default_rng(seed)
    a, b = numbers.normal(size=(count * rank, 9)), numbers.normal(size=(7, rank * count))
    return Factors(a, b, 0.5, count)


def delta_of(given: Factors) -> Matrix:
    """Return the deltas of all experts, as PEFT forms them."""
    a = given.a.reshape(given.experts, -1, given.a.shape[1])
    b = given.b.reshape(given.b.shape[0], -1, given.experts)
    return given.scaling * np.einsum("ore,eri->eoi", b, a)


def change_of(one: Factors | None, other: Factors | None) -> DeltaChange:
    squares = measure(one, other)
    assert squares is not None
    return squares.change()


PAIRS = {
    "same rank": (factors(1), factors(2)),
    "other rank": (factors(1), factors(2, rank=8)),
    "other scaling": (factors(1), replace(factors(1), scaling=-0.3)),
    "rank above the features": (factors(1, rank=30), factors(2, rank=3)),
    "one feature": (factors(1, out=1, inside=1, rank=5), factors(2, out=1, inside=1, rank=6)),
    "experts": (experts(1, count=3, rank=2), experts(2, count=3, rank=2)),
    "experts of other ranks": (experts(1, count=3, rank=2), experts(2, count=3, rank=1)),
    "huge": tuple(replace(each, b=each.b * 1e150, a=each.a * 1e100) for each in (factors(1), factors(2))),
    "tiny": tuple(replace(each, b=each.b * 1e-150, a=each.a * 1e-100) for each in (factors(1), factors(2))),
}


@pytest.mark.parametrize("name", PAIRS)
def test_change_is_that_of_the_deltas(name: str) -> None:
    one, other = PAIRS[name]
    deltas = [delta_of(each) for each in (one, other)]
    unit = max(float(np.abs(each).max()) for each in deltas)
    first, second = (each / unit for each in deltas)
    found = change_of(one, other)
    assert found.first_norm is not None and found.second_norm is not None
    assert found.first_norm / unit == pytest.approx(np.linalg.norm(first), rel=1e-12)
    assert found.second_norm / unit == pytest.approx(np.linalg.norm(second), rel=1e-12)
    assert found.relative == pytest.approx(np.linalg.norm(second - first) / np.linalg.norm(first), rel=1e-12)
    cosine = np.sum(first * second) / np.linalg.norm(first) / np.linalg.norm(second)
    assert found.cosine == pytest.approx(cosine, abs=1e-12)


@given(st.integers(0, 1000), st.sampled_from([1e-4, 1e-9, 1e-13]), st.sampled_from(["a", "b"]))
def test_small_change_keeps_its_digits(seed: int, size: float, which: str) -> None:
    one, noise = factors(seed), factors(seed + 1)
    other = replace(one, **{which: getattr(one, which) * (1 + size * np.sign(getattr(noise, which)))})
    # Formed from the difference, since the difference of the formed deltas has lost its digits.
    part = {"a": one.a, "b": one.b} | {which: getattr(other, which) - getattr(one, which)}
    expected = 2.0 * np.linalg.norm(part["b"] @ part["a"])
    assert change_of(one, other).difference_norm == pytest.approx(expected, rel=1e-9)


def test_same_numbers_are_no_change_at_all() -> None:
    found = change_of(factors(3), factors(3))
    assert (found.difference_norm, found.relative) == (0.0, 0.0)
    assert found.cosine == pytest.approx(1.0, abs=1e-15)


def test_other_factors_of_one_delta_are_no_change() -> None:
    one = factors(4)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    other = Factors(turn.T @ one.a * 4, one.b @ turn, one.scaling / 4)
    found = change_of(one, other)
    assert found.relative is not None
    assert found.relative < 1e-7
    assert found.cosine == pytest.approx(1.0, abs=1e-12)


def test_delta_that_one_side_lacks_is_the_whole_change() -> None:
    norm = float(np.linalg.norm(delta_of(factors(5))))
    added, removed = change_of(None, factors(5)), change_of(factors(5), None)
    assert (added.first_norm, added.relative, added.cosine) == (0.0, None, None)
    assert added.difference_norm == added.second_norm == pytest.approx(norm)
    assert (removed.second_norm, removed.relative, removed.cosine) == (0.0, pytest.approx(1.0), None)


def test_untrained_factors_have_no_angle() -> None:
    zero = replace(factors(6), b=np.zeros((12, 4)))
    assert change_of(zero, zero) == DeltaChange(
        first_norm=0.0, second_norm=0.0, difference_norm=0.0, relative=None, cosine=None
    )
    found = change_of(zero, factors(6))
    assert (found.relative, found.cosine) == (None, None)
    assert found.difference_norm == found.second_norm


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(factors(1, out=13), id="output"),
        pytest.param(factors(1, inside=21), id="input"),
        pytest.param(replace(factors(1), a=np.full((4, 20), np.nan)), id="nan"),
        pytest.param(replace(factors(1), b=np.full((12, 4), np.inf)), id="infinity"),
    ],
)
def test_what_cannot_be_compared_has_no_measure(other: Factors) -> None:
    assert measure(factors(1), other) is None


def test_other_number_of_experts_is_another_shape() -> None:
    assert measure(experts(1, count=3, rank=2), experts(1, count=2, rank=3)) is None


def test_norm_beyond_the_range_of_a_number_is_not_known() -> None:
    huge = replace(factors(1), a=factors(1).a * 1e200, b=factors(1).b * 1e200)
    found = change_of(huge, huge)
    assert (found.first_norm, found.relative) == (None, 0.0)
    assert found.cosine == pytest.approx(1.0)


def test_total_is_that_of_all_deltas_side_by_side() -> None:
    pairs = [
        (factors(1), factors(2)),
        (factors(3, out=5), factors(4, out=5, scaling=1e-3)),
        (None, factors(5)),
    ]
    squares = [each for pair in pairs if (each := measure(*pair))]
    found = Squares.total(squares).change()
    flat = [
        np.concatenate([np.zeros(240) if each is None else delta_of(each).ravel() for each in side])
        for side in zip(*pairs, strict=True)
    ]
    assert found.relative == pytest.approx(np.linalg.norm(flat[1] - flat[0]) / np.linalg.norm(flat[0]))
    assert found.cosine == pytest.approx(
        flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    )


def test_rows_are_measured_as_they_are() -> None:
    one, other = np.array([[3.0, 4.0]]), np.array([[3.0, 0.0]])
    squares = measure_rows(one, other)
    assert squares is not None
    found = squares.change()
    assert (found.first_norm, found.difference_norm, found.relative) == (5.0, 4.0, pytest.approx(0.8))
    assert found.cosine == pytest.approx(0.6)
    assert measure_rows(one, np.array([[math.inf, 0.0]])) is None
