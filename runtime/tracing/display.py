"""The look of a trace: each member's letter and colour, and how much of each token went to each member.

Letters work without colour. The colours are backgrounds for black text, on a dark page as on a light one:
black on each of them has a contrast of at least 5.5 to 1. They were chosen greedily, each the furthest in
OKLab from all before it among those of moderate chroma, so the first few are as different as so many can be.
From the thirty-third member on the colours repeat; the letters do not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...schemas.trace import NO_MEMBER, Trace, TraceRouting

Shares = npt.NDArray[np.float64]


def token_shares(trace: Trace) -> Shares:
    """Return the mean weight over the modules: float64 ``[tokens, members + 1]``, each row summing to 1.

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
    """Return each token's member with the largest share, the lowest index among equals; -1 for no member."""
    none = shares.shape[1] - 1
    return [NO_MEMBER if index == none else int(index) for index in shares.argmax(axis=1)]


def _weights_by_member(routing: TraceRouting, members: int) -> Shares:
    weights = np.zeros((len(routing.selection), members))
    for token, (selection, shares) in enumerate(zip(routing.selection, routing.weights, strict=True)):
        for member, weight in zip(selection, shares, strict=True):
            if member != NO_MEMBER:
                weights[token, member] += weight
    return weights


COLOURS = (
    *("#85a0f5", "#fbe853", "#d7680a", "#19ae5f", "#14fdfd", "#fed5fd", "#f67bb7", "#bab192"),
    *("#9e7990", "#7cdf7c", "#1896ab", "#968808", "#3bc8c8", "#feaa21", "#cae8c5", "#b371da"),
    *("#a2cffd", "#dca2ff", "#b0b326", "#fd8d76", "#fec1a6", "#dc5a71", "#2988e5", "#7c9c7e"),
    *("#c79bbb", "#b4fd8a", "#c89343", "#13b9fb", "#7c7ec3", "#ced276", "#8ba9bd", "#77bf7f"),
)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NO_LETTER = "-"


def letter_of(member: int) -> str:
    """Return ``A`` to ``Z``, then ``AA``, ``AB`` and so on; ``-`` for no member."""
    if member == NO_MEMBER:
        return NO_LETTER
    rest, last = divmod(member, len(_LETTERS))
    return (letter_of(rest - 1) if rest else "") + _LETTERS[last]


def colour_of(member: int) -> str:
    """Return the background of a member's tokens, as ``#rrggbb``."""
    return COLOURS[member % len(COLOURS)]
