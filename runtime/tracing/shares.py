"""How much of each token went to each member, over the modules together."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...schemas.trace import NO_MEMBER, Trace, TraceRouting

Shares = npt.NDArray[np.float64]


def token_shares(trace: Trace) -> Shares:
    """The mean weight over the modules: float64 ``[tokens, members + 1]``, each row summing to 1.

    The last column is what no member took.
    """
    modules_of = np.bincount([module.routing for module in trace.modules], minlength=len(trace.routings))
    total = np.zeros((len(trace.tokens), len(trace.members)))
    for routing, modules in zip(trace.routings, modules_of, strict=True):
        total += modules * _weights_by_member(routing, len(trace.members))
    shares = total / len(trace.modules)
    none = np.clip(1 - shares.sum(axis=1, keepdims=True), 0, 1)
    return np.concatenate([shares, none], axis=1)


def leading_members(shares: Shares) -> list[int]:
    """Each token's member with the largest share, the lowest index among equals; -1 for no member."""
    none = shares.shape[1] - 1
    return [NO_MEMBER if index == none else int(index) for index in shares.argmax(axis=1)]


def _weights_by_member(routing: TraceRouting, members: int) -> Shares:
    weights = np.zeros((len(routing.selection), members))
    for token, (selection, shares) in enumerate(zip(routing.selection, routing.weights, strict=True)):
        for member, weight in zip(selection, shares, strict=True):
            if member != NO_MEMBER:
                weights[token, member] += weight
    return weights
