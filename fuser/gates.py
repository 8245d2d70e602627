"""First values of a gate, before a fit: reproducible from the members and a seed.

``arrow`` follows Ostapenko et al. ("Towards Modular LLMs by Building and Reusing a Library of
LoRAs", arXiv 2405.11157): a member's row is the direction of the input that its delta amplifies
most, the top right singular vector of B A; the gate scores |v . x|, hence the kind ``absolute``.
``normal`` draws small random rows, a start for training. Neither knows the tasks: a bundle made
with either records that its gate is not fitted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from ..schemas.gate_choices import InitialGate

# The usual spread of a linear layer's first weights in transformers.
NORMAL_STANDARD_DEVIATION = 0.02
# The square of a gain that is this small beside the squared sizes of its factors is rounding: the Gram
# matrices are exact to about 1e-15 of those sizes, and a gain is judged to 1e-5 of itself.
_NEGLIGIBLE = 1e-9
# A gate row is rounded to float32 once; a vector of unit length keeps about seven digits.
_ROW_TOLERANCE = 1e-5


# Each member's A ``[r, in]`` and B ``[out, r]`` in one module, or None where it is absent.
Factors = Sequence[tuple[Tensor, Tensor] | None]


def initial_gate(method: InitialGate, path: str, factors: Factors, *, seed: int) -> Tensor:
    """Return the first values of one module's gate: float32 ``[L, in]``."""
    in_features = next(pair for pair in factors if pair is not None)[0].shape[1]
    return INITIALISATIONS[method].draw(path, factors, in_features, seed)


def arrow_gate(factors: Factors, in_features: int) -> Tensor:
    """Return each member's arrow direction, float32 ``[L, in]``; a zero row where a member is absent."""
    gate = torch.zeros(len(factors), in_features, dtype=torch.float32)
    present = [index for index, pair in enumerate(factors) if pair is not None]
    gate[present] = arrow_directions([pair for pair in factors if pair is not None]).to(torch.float32)
    return gate


def arrow_directions(factors: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return for each pair A ``[r, in]``, B ``[out, r]`` the unit vector x that maximises ||B A x||.

    The result is float64 ``[M, in]``. Of the two signs the one whose largest entry is positive; a zero row
    where B A is zero as far as float64 can tell.

    With ``B^T B = S^T S``, the singular values of B A are those of ``S A``, whose Gram matrix
    ``S (A A^T) S^T`` is r x r: if u is its leading eigenvector, then ``x = A^T S^T u``. Only the products
    with A and B cost anything; two QRs and an SVD took 1.0 to 2.6 times as long (docs/verification.md).
    """
    with _one_thread():
        wide = [A.to(torch.float64) for A, _ in factors]
        grams = [Grams.of(A, B.to(torch.float64)) for A, (_, B) in zip(wide, factors, strict=True)]
        rows = torch.zeros(len(factors), wide[0].shape[1], dtype=torch.float64)
        for index, (combination, _) in enumerate(leading_pairs(grams)):
            torch.mv(wide[index].T, combination, out=rows[index])
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        rows = torch.where(lengths > 0, rows / lengths, 0.0)
        return rows * torch.sign(rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)))


class Grams(NamedTuple):
    """The Gram matrices of one member's factors, float64 ``[r, r]``: ``a = A A^T`` and ``b = B^T B``."""

    a: Tensor
    b: Tensor

    @classmethod
    def of(cls, A: Tensor, B: Tensor) -> Self:
        """Return the Gram matrices of float64 factors."""
        return cls(A @ A.T, B.T @ B)


def leading_pairs(grams: Sequence[Grams]) -> list[tuple[Tensor, float]]:
    """Return, for each member, how its rows of A combine to the arrow direction, and its largest gain.

    The first is float64 ``[r]``, up to its length; the second is the largest singular value of B A. Both
    are zero where B A is below what the Gram matrices can resolve; the gain is NaN where a factor is not
    finite.
    """
    found: dict[int, tuple[Tensor, float]] = {}
    # Matrices of one size are solved in one call: a call costs more than an 8 x 8 problem.
    for rank in {len(gram.a) for gram in grams}:
        members = [index for index, gram in enumerate(grams) if len(gram.a) == rank]
        combinations, gains = _solve([grams[index] for index in members])
        found.update(zip(members, zip(combinations, gains.tolist(), strict=True), strict=True))
    return [found[index] for index in range(len(grams))]


def _solve(grams: Sequence[Grams]) -> tuple[Tensor, Tensor]:
    """Return the combinations ``[M, r]`` and the gains ``[M]`` of members of one rank."""
    a, b = torch.stack([gram.a for gram in grams]), torch.stack([gram.b for gram in grams])
    # The columns of B are scaled to length one and the rows of A by the inverse, which leaves B A as it is:
    # a Gram matrix squares the ratio of large columns to small ones, and the small ones would be lost.
    is_finite = (a.isfinite() & b.isfinite()).flatten(1).all(dim=1)
    a, b = (torch.where(is_finite[:, None, None], matrix, 0.0) for matrix in (a, b))
    lengths = b.diagonal(dim1=1, dim2=2).sqrt()
    inverse = torch.where(lengths > 0, 1 / lengths, 0.0)
    a, b = a * _outer(lengths), b * _outer(inverse)
    values, vectors = torch.linalg.eigh(b)
    S = values.clamp_min(0).sqrt().unsqueeze(2) * vectors.mT
    squares, vectors = torch.linalg.eigh(S @ a @ S.mT)
    combinations = (vectors[..., -1:].mT @ S).squeeze(1) * lengths
    sizes = a.diagonal(dim1=1, dim2=2).sum(dim=1)
    gains = torch.where(squares[:, -1] > _NEGLIGIBLE * sizes, squares[:, -1].clamp_min(0).sqrt(), 0.0)
    combinations = torch.where(gains.unsqueeze(1) > 0, combinations, 0.0)
    return combinations, torch.where(is_finite, gains, torch.nan)


def _outer(rows: Tensor) -> Tensor:
    return rows.unsqueeze(2) * rows.unsqueeze(1)


def normal_gate(path: str, members: int, in_features: int, *, seed: int) -> Tensor:
    """Return float32 ``[L, in]`` of N(0, 0.02^2), a function of seed and module path alone."""
    digest = hashlib.sha256(f"{seed}:{path}".encode()).digest()
    # The legacy generator's stream is frozen for ever, the newer one's may change between releases.
    random = np.random.RandomState(np.frombuffer(digest, dtype=np.uint32))
    values = random.standard_normal((members, in_features)) * NORMAL_STANDARD_DEVIATION
    return torch.from_numpy(values.astype(np.float32))


def _are_arrows(gate: Tensor, factors: Factors) -> list[bool]:
    """Return, for each row of a gate, whether it is a top right singular vector of its member's B A.

    Vectors are not compared: where two singular values are nearly equal, another machine may rightly find
    another direction. So a row must have length one and attain the largest singular value. Any direction will
    do where B A is zero as far as float64 can tell.
    """
    gate = gate.to(torch.float64)
    right = [not bool(row.any()) for row in gate]
    present = [(index, *pair) for index, pair in enumerate(factors) if pair is not None]
    gains, grams = [], []
    for index, *pair in present:
        A, B = (factor.to(torch.float64) for factor in pair)
        gains.append(torch.linalg.vector_norm(B @ (A @ gate[index])).item())
        grams.append(Grams.of(A, B))
    for (index, *_), gain, (_, largest) in zip(present, gains, leading_pairs(grams), strict=True):
        length = torch.linalg.vector_norm(gate[index]).item()
        is_unit = abs(length - 1) <= _ROW_TOLERANCE
        attains = gain >= (1 - _ROW_TOLERANCE) * largest
        right[index] = (is_unit and attains) or (largest == 0.0 and right[index])
    return right


def _equal_rows(gate: Tensor, expected: Tensor) -> list[bool]:
    rows: list[bool] = (gate == expected).all(dim=1).tolist()
    return rows


@dataclass(frozen=True, slots=True)
class Initialisation:
    """One way to make the first values of a gate; its kind is in ``gate_choices.INITIAL_GATE_KINDS``.

    Attributes:
        draw: the values of a module, float32 ``[L, in]``, from its path, factors, ``in`` and the seed.
        check: whether each row of a gate is what ``draw`` gives; on another machine too.
    """

    draw: Callable[[str, Factors, int, int], Tensor]
    check: Callable[[str, Tensor, Factors, int], list[bool]]


INITIALISATIONS: dict[InitialGate, Initialisation] = {
    "arrow": Initialisation(
        draw=lambda path, factors, in_features, seed: arrow_gate(factors, in_features),
        check=lambda path, gate, factors, seed: _are_arrows(gate, factors),
    ),
    "normal": Initialisation(
        draw=lambda path, factors, in_features, seed: normal_gate(path, len(factors), in_features, seed=seed),
        check=lambda path, gate, factors, seed: _equal_rows(
            gate, normal_gate(path, len(factors), gate.shape[1], seed=seed)
        ),
    ),
}


@contextmanager
def _one_thread() -> Iterator[None]:
    # The order of a sum depends on the number of threads, and the bundle's bytes must not.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
