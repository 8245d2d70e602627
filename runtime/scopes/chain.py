"""A sticky chain over the members: each token most likely keeps the member of the token before it.

With probability ``SWITCH_PROBABILITY`` the member is drawn anew from ``prior``, else it stays:
P(j | i) = (1 - s) [i = j] + s prior_j. A token's evidence is how likely each member makes it. The recursions
are the forward-backward algorithm, in probabilities that are normalised at every token.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Before a token: how likely it is that another member's text begins. A hundred tokens is a short answer.
SWITCH_PROBABILITY = 0.01


def filter_chain(start: Tensor, likelihood: Tensor, active: Tensor, prior: Tensor) -> Tensor:
    """P(member of token t | tokens up to t), [B, T, L].

    Args:
        start: [B, L], the same for the token before the first; uniform where a sequence begins.
        likelihood: [B, T, L], above 0, each token's up to a factor.
        active: bool [B, T]; what holds before a token that is not also holds after it.
        prior: [B, L], who is drawn at a switch.
    """
    current, found = start, []
    for token in range(likelihood.shape[1]):
        moved = (1 - SWITCH_PROBABILITY) * current + SWITCH_PROBABILITY * prior
        updated = normalise(moved * likelihood[:, token])
        current = torch.where(active[:, token, None], updated, current)
        found.append(current)
    return torch.stack(found, dim=1)


def smooth_chain(filtered: Tensor, likelihood: Tensor, active: Tensor, prior: Tensor) -> Tensor:
    """P(member of token t | all active tokens), [B, T, L]; arguments as for ``filter_chain``.

    ``filtered`` is what that returned. Only active tokens' values mean something.
    """
    behind = torch.ones_like(filtered[:, 0])
    found = []
    for token in reversed(range(filtered.shape[1])):
        found.append(normalise(filtered[:, token] * behind))
        seen = likelihood[:, token] * behind
        redrawn = (prior * seen).sum(dim=-1, keepdim=True)
        updated = normalise((1 - SWITCH_PROBABILITY) * seen + SWITCH_PROBABILITY * redrawn)
        behind = torch.where(active[:, token, None], updated, behind)
    return torch.stack(found[::-1], dim=1)


def normalise(weights: Tensor) -> Tensor:
    """The weights divided by their sum over the last dimension."""
    return weights / weights.sum(dim=-1, keepdim=True)
