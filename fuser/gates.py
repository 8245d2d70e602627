"""First values of a gate, before anybody fits it: reproducible from the members and a seed.

``arrow`` follows Ostapenko et al. ("Towards Modular LLMs by Building and Reusing a Library of
LoRAs", arXiv 2405.11157): a member's row is the direction of the input that its delta amplifies
most, the top right singular vector of B A; the gate scores |v . x|, hence the kind ``absolute``.
``normal`` draws small random rows, a start for training. Neither knows the tasks: a bundle made
with either says that its gate is not fitted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ..schemas.plan import FusePlan

# The usual spread of a linear layer's first weights in transformers.
NORMAL_STANDARD_DEVIATION = 0.02


def initial_gate(plan: FusePlan, path: str, factors: Sequence[tuple[Tensor, Tensor] | None]) -> Tensor:
    """The gate of one module: float32 ``[L, in]``.

    Args:
        plan: says which method and seed.
        path: the module.
        factors: each member's A ``[r, in]`` and B ``[out, r]``, or None where it is absent; an
            absent member's arrow row is zero.
    """
    in_features = next(pair for pair in factors if pair is not None)[0].shape[1]
    if plan.gate == "normal":
        return normal_gate(path, len(factors), in_features, seed=plan.seed)
    return arrow_gate(factors, in_features)


def arrow_gate(factors: Sequence[tuple[Tensor, Tensor] | None], in_features: int) -> Tensor:
    """Float32 ``[L, in]``: each member's top right singular vector of B A, zero where it is absent."""
    gate = torch.zeros(len(factors), in_features, dtype=torch.float32)
    with _one_thread():
        for index, pair in enumerate(factors):
            if pair is not None:
                gate[index] = top_right_singular_vector(*pair).to(torch.float32)
    return gate


def top_right_singular_vector(A: Tensor, B: Tensor) -> Tensor:
    """The unit vector x that maximises ||B A x||: float64 ``[in]``; zero if B A is zero.

    B A = Q_b (R_b R_a^T) Q_a^T by two thin QRs, so the SVD is of an r x r matrix and the product of
    size out x in is never formed. Of the two signs the one whose largest entry is positive.
    """
    q_a, r_a = torch.linalg.qr(A.to(torch.float64).T)
    _, r_b = torch.linalg.qr(B.to(torch.float64))
    _, singular, v_transposed = torch.linalg.svd(r_b @ r_a.T)
    if singular[0] == 0:
        return torch.zeros(A.shape[1], dtype=torch.float64)
    vector: Tensor = q_a @ v_transposed[0]
    return vector * torch.sign(vector[vector.abs().argmax()])


def normal_gate(path: str, members: int, in_features: int, *, seed: int) -> Tensor:
    """Float32 ``[L, in]`` of N(0, 0.02^2), a function of seed and module path alone."""
    digest = hashlib.sha256(f"{seed}:{path}".encode()).digest()
    # The legacy generator's stream is frozen for ever, the newer one's may change between releases.
    random = np.random.RandomState(np.frombuffer(digest, dtype=np.uint32))
    values = random.standard_normal((members, in_features)) * NORMAL_STANDARD_DEVIATION
    return torch.from_numpy(values.astype(np.float32))


@contextmanager
def _one_thread() -> Iterator[None]:
    # The order of a sum depends on the number of threads, and the bundle's bytes must not.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
