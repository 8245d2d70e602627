"""A pass of scope ``token`` over tokens whose member is known: it routes, and measures the gates."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ...kernels.routing import Gate, gate_logits, select_top_k
from ..fitting.sequences import NO_MEMBER
from ..scopes.passes import Choice, SharedRoutings, TokenPass


class LabelledPass(TokenPass):
    """A pass in which every module decides by its own gate, and is compared with the tokens' own member.

    Args:
        shared: the routings of gates that serve several modules; such a gate counts once.
        labels: int64 ``[B, T]``, the place of each token's member, or ``NO_MEMBER`` for a token that does
            not count.
    """

    def __init__(self, shared: SharedRoutings, labels: Tensor) -> None:
        super().__init__(shared)
        self._labels = labels
        self._losses: list[Tensor] = []
        self._right: list[Tensor] = []

    def choose(self, path: str, x: Tensor, gate: Gate | None) -> Choice:
        """Return what the gate decides for x [B, T, in] or [B * T, in], after it was compared."""
        if gate is None:
            return super().choose(path, x, gate)
        logits = gate_logits(x, gate.weight, gate.bias, kind=gate.kind, eps=gate.eps)
        self._compare(logits)
        # The softmax over one logit is 1 whatever that is. Its gradient, zero, would take a backward pass
        # through the whole base.
        chosen = logits if gate.top_k > 1 else logits.detach()
        routing = select_top_k(chosen, gate.top_k, temperature=gate.temperature)
        self.report(path, routing, x)
        return routing

    def _compare(self, logits: Tensor) -> None:
        labels = self._labels.to(logits.device)
        losses = functional.cross_entropy(
            logits.reshape(labels.numel(), -1),
            labels.reshape(-1),
            ignore_index=NO_MEMBER,
            reduction="none",
        )
        right = logits.detach().reshape(*labels.shape, -1).argmax(dim=-1) == labels
        self._losses.append(self._mean_of_rows(losses.reshape(labels.shape)))
        self._right.append(self._mean_of_rows(right.to(logits.dtype)))

    def _mean_of_rows(self, values: Tensor) -> Tensor:
        counted = (self._labels != NO_MEMBER).sum(dim=1).clamp(min=1)
        return values.sum(dim=1).to(counted.device) / counted

    @property
    def loss(self) -> Tensor:
        """Float32 [B], the cross-entropy of each row: the mean over the gates and the tokens that count."""
        return torch.stack(self._losses).mean(dim=0)

    @property
    def right(self) -> Tensor:
        """Float32 [B], the share of gates and tokens of each row whose own member has the highest logit."""
        return torch.stack(self._right).mean(dim=0)
