"""A record of which member each token took while a model ran."""

from __future__ import annotations

import torch
from torch import nn

from ..kernels.routing import Routing
from .calls import ForwardCall
from .scopes.decision import Decision, RequestDecision


class RoutingRecord:
    """The routings of one run of a bundle: of one forward pass, or of one generation with its cache.

    A pass that begins new sequences starts the record over, so that it is always about the latest ones.
    With a beam search a row is a beam's place at that step.
    """

    def __init__(self, members: tuple[str, ...]) -> None:
        self.members = members
        self._modules: dict[str, list[Routing]] = {}
        self._recorded: set[str] = set()
        self._decision: RequestDecision | None = None
        self._batch, self._tokens = 1, 0

    @property
    def modules(self) -> dict[str, Routing]:
        """By module path: selection int64 and weights float32, both [B, T, k].

        T counts all tokens that went through the model, the prompt's and its padding first. Where the
        base alone served a token its selection is -1 and its weights are 0.
        """
        return {path: _joined(steps) for path, steps in self._modules.items()}

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The decisions for whole requests or segments; empty in the scopes that decide by token."""
        return () if self._decision is None else self._decision.describe(self.members, self._tokens)

    def begin(self, call: ForwardCall) -> None:
        """Start a pass."""
        if call.is_new:
            self._modules, self._decision, self._tokens = {}, None, 0
        self._recorded = set()
        self._batch, tokens = call.leading_shape
        self._tokens += tokens

    def decide(self, decision: RequestDecision) -> None:
        """Keep the decision of a scope that decides ahead."""
        self._decision = decision

    def add(self, path: str, routing: Routing) -> None:
        """Record one module's routing; a layer that a backward pass recomputes adds nothing."""
        if path in self._recorded:
            return
        self._recorded.add(path)
        k = routing.selection.shape[-1]
        selection, weights = (
            tensor.detach().reshape(self._batch, -1, k) for tensor in (routing.selection, routing.weights)
        )
        is_served = weights.bool().any(dim=-1, keepdim=True)
        step = Routing(torch.where(is_served, selection, -1), weights)
        self._modules.setdefault(path, []).append(step)


def _joined(steps: list[Routing]) -> Routing:
    # Steps may differ in k: a block with another top_k may be nested within an answer.
    k = max(step.selection.shape[-1] for step in steps)
    return Routing(
        torch.cat([_widened(step.selection, k, -1) for step in steps], dim=1),
        torch.cat([_widened(step.weights, k, 0.0) for step in steps], dim=1),
    )


def _widened(tensor: torch.Tensor, k: int, value: float) -> torch.Tensor:
    return nn.functional.pad(tensor, (0, k - tensor.shape[-1]), value=value)
