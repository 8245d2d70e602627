"""The evidence of request gates: which member a request is for, and whether it is for any.

A request gate has a row for each of L members and C background classes, by discriminant analysis. Of a
token it gives two things: the log posteriors of all classes, as every gate does, and how familiar the token
is. That is minus its relative Mahalanobis distance to the nearest member: the distance to the member's mean
under C, the covariance within the classes, less that to the mean of the members under the covariance of all
their tokens (Ren et al., "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection", 2021).
x^T C^-1 x is in both and cancels, and the second covariance is C plus what the L means span. So the
distance follows from the gate's own logits z and the Gram matrix of the members' means, M_ij = (mu_i - m)^T
C^-1 (mu_j - m):

    u_i = z_i - mean(z) + (M_ii - mean(diag M)) / 2       over the members
    distance_i = M_ii - 2 u_i + u^T (L I + M)^-1 u

The score of a request is its familiarity, in standard deviations of held-out own prompts, plus the log of
the logistic function of its best member's evidence less the whole background's. The first finds tasks that
no member was made for, the second general prompts (docs/gates.md). Its confidence is the share of own
prompts with a lower score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ...kernels.routing import Gate, gate_logits
from .passes import Evidence, RoutingPass


@dataclass(frozen=True, slots=True)
class Gram:
    """The Gram matrix M of the members' means, [L, L], and the inverse of L I + M, which no token changes."""

    values: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """Return the matrix with its inverse."""
        members = len(values)
        inner = torch.eye(members, device=values.device) * members + values
        # A copy, so that a change of the bundle's tensor shows.
        return cls(values.detach().clone(), torch.linalg.inv(inner))

    def is_of(self, values: Tensor) -> bool:
        """Return whether these are the values that were inverted."""
        return self.values.device == values.device and torch.equal(self.values, values)


@dataclass(frozen=True, slots=True)
class RequestGate:
    """One module's request gate.

    Attributes:
        rows: [L + C, h].
        bias: [L + C].
        gram: of the members' means.
        kind: as of every other gate.
        eps: as of every other gate.
    """

    rows: Tensor
    bias: Tensor
    gram: Gram
    kind: str
    eps: float

    @property
    def classes(self) -> int:
        """Members and background classes together."""
        return self.rows.shape[0]

    def read(self, x: Tensor) -> Tensor:
        """Return the log posteriors and the familiarity of tokens x [..., h], float32 [..., L + C + 1]."""
        logits = gate_logits(x, self.rows, self.bias, kind=self.kind, eps=self.eps)
        familiarity = familiarity_of(logits[..., : len(self.gram.values)], self.gram)
        return torch.cat([torch.log_softmax(logits, dim=-1), familiarity.unsqueeze(-1)], dim=-1)


def familiarity_of(logits: Tensor, gram: Gram) -> Tensor:
    """Return minus the relative Mahalanobis distance to the nearest member, from logits [..., L]."""
    own = gram.values.diagonal()
    centred = logits - logits.mean(dim=-1, keepdim=True) + (own - own.mean()) / 2
    spanned: Tensor = (centred * (centred @ gram.inverse)).sum(dim=-1)
    nearest: Tensor = (2 * centred - own).amax(dim=-1)
    return nearest - spanned


class RequestEvidence(Evidence):
    """The log posteriors and familiarity of each token of a call, averaged over a bundle's request gates."""

    def __init__(self, batch: int, tokens: int, gates: Mapping[str, RequestGate]) -> None:
        super().__init__(batch, tokens, next(iter(gates.values())).classes + 1)
        self._gates = gates

    def read(self, path: str, x: Tensor) -> None:
        """Add what a module's request gate reads of its input x [B, T, h] or [B * T, h], if it has one.

        Raises:
            UsageError: the module saw other tokens than the model was given.
        """
        gate = self._gates.get(path)
        if gate is not None:
            found = gate.read(x)
            self._check(path, found)
            self._add(found)


@dataclass(frozen=True, slots=True)
class ObservedRequestPass(RoutingPass):
    """The plain base's pass that request gates read: no member adds anything."""

    evidence: RequestEvidence

    def choose(self, path: str, x: Tensor, gate: Gate | None) -> None:
        """Return None: no member serves any token."""
        self.observe(path, x)

    def observe(self, path: str, x: Tensor) -> None:
        """Take in the input of a module, which may have a request gate."""
        self.evidence.read(path, x)


@dataclass(frozen=True, slots=True)
class RequestRule:
    """The rule by which the evidence of request gates becomes a confidence.

    Attributes:
        members: of the bundle.
        modules: that have a request gate.
        centre: the mean familiarity of held-out own prompts.
        spread: its standard deviation.
        quantiles: of the score of own prompts, at every hundredth; None if they are not known.
    """

    members: int
    modules: tuple[str, ...]
    centre: float
    spread: float
    quantiles: tuple[float, ...] | None

    def score(self, evidence: Tensor) -> Tensor:
        """Return the score of requests with this mean evidence [B, L + C + 1], float32 [B]."""
        own, background = evidence[..., : self.members], evidence[..., self.members : -1]
        ratio = own.amax(dim=-1) - background.logsumexp(dim=-1)
        return (evidence[..., -1] - self.centre) / self.spread + logsigmoid(ratio)

    def evidence(self, evidence: Tensor) -> Tensor:
        """Return how likely each member is, by requests' mean evidence [B, L + C + 1], float32 [B, L].

        The background classes have the rest of 1.
        """
        return evidence[..., :-1].softmax(dim=-1)[..., : self.members]

    def confidence(self, evidence: Tensor) -> Tensor:
        """Return the confidence of decisions: the share of own prompts whose score is lower, float32 [B].

        Without quantiles, the logistic function of the score.
        """
        score = self.score(evidence)
        if self.quantiles is None:
            return torch.sigmoid(score)
        return share_below(score, torch.tensor(self.quantiles, dtype=torch.float64, device=score.device))


def share_below(score: Tensor, quantiles: Tensor) -> Tensor:
    """Return the share of a distribution that is below each score [B], from its quantiles, float32."""
    steps = len(quantiles) - 1
    score = score.to(torch.float64)
    # The last step whose quantile the score reaches, so that equal quantiles count as reached.
    step = (torch.searchsorted(quantiles, score, right=True) - 1).clamp(0, steps - 1)
    low, high = quantiles[step], quantiles[step + 1]
    within = torch.where(high > low, (score - low) / (high - low).clamp(min=1e-300), 1.0).clamp(0, 1)
    return ((step + within) / steps).float()
