"""One forward pass of the base model, as a bundle's layers see it.

Every scope comes down to an answer to one question of a layer, for the tokens it was given: *which members
serve them?* The answer is the layer's own gate, a routing that was decided elsewhere, or nothing at all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from ...kernels.routing import Gate, Routing, gate_logits, route_to
from ...schemas.errors import UsageError
from .evidence import Evidence


class RoutingPass(ABC):
    """How one forward pass routes."""

    @abstractmethod
    def choose(self, path: str, x: Tensor, gate: Gate | None) -> Gate | Routing | None:
        """Answer a module with input x [..., in] and its own gate, where it has one."""

    def report(self, path: str, routing: Routing) -> None:  # noqa: B027 (most passes have no use for it)
        """Take in the decision of a module's gate, after the answer was that gate.

        Most passes have no use for it.
        """


@dataclass(frozen=True, slots=True)
class ObservedPass(RoutingPass):
    """The plain base: no member adds anything, and the gates' opinions of its activations are gathered."""

    evidence: Evidence

    def choose(self, path: str, x: Tensor, gate: Gate | None) -> None:
        """Nothing serves any token."""
        if gate is not None:
            self.evidence.add(path, gate_logits(x, gate.weight, gate.bias, kind=gate.kind, eps=gate.eps))


@dataclass(frozen=True, slots=True)
class ForcedPass(RoutingPass):
    """One member serves every token with weight 1."""

    member: int

    def choose(self, path: str, x: Tensor, gate: Gate | None) -> Routing:
        """The member, whatever the token."""
        return route_to(self.member, x.shape[:-1], x.device)


@dataclass(frozen=True, slots=True)
class UniformPass(RoutingPass):
    """Every one of ``members`` members serves every token with the same weight."""

    members: int

    def choose(self, path: str, x: Tensor, gate: Gate | None) -> Routing:
        """All of them."""
        shape = (*x.shape[:-1], self.members)
        everyone = torch.arange(self.members, device=x.device).expand(shape)
        return Routing(everyone, torch.full(shape, 1 / self.members, device=x.device))


@dataclass(frozen=True, slots=True)
class DecidedPass(RoutingPass):
    """The routing [B, T, k] of every token was decided before the pass; all modules take it."""

    routing: Routing

    def choose(self, path: str, x: Tensor, gate: Gate | None) -> Routing:
        """Return the decision for the module's tokens [B, T] or [B * T]."""
        return fit_tokens(self.routing, x, path)


@dataclass(frozen=True, slots=True)
class UndecidedPass(RoutingPass):
    """No pass has begun: who calls a module by itself skips what would have decided."""

    scope: str

    def choose(self, path: str, x: Tensor, gate: Gate | None) -> NoReturn:
        """Refuse."""
        raise UsageError(
            f"`{path}` was called outside a forward pass of its model, but the bundle's scope `{self.scope}` "
            "decides for a whole request",
            hint="call the model itself, or route by token within `route_as(model, scope='token')`",
        )


def fit_tokens(routing: Routing, x: Tensor, path: str) -> Routing:
    """A routing [B, T, k] for a module that may see its tokens as one row.

    Raises:
        UsageError: the module was given other tokens.
    """
    leading, k = x.shape[:-1], routing.selection.shape[-1]
    if leading.numel() != routing.selection.shape[:-1].numel() or leading[:1].numel() == 0:
        raise UsageError(
            f"`{path}` was given tokens {list(leading)}, but the routing is for "
            f"{list(routing.selection.shape[:-1])}",
            hint="a decision serves modules that see every token of the request; route by token instead, "
            "within `route_as(model, scope='token')`",
        )
    shape = (*leading, k)
    return Routing(routing.selection.to(x.device).reshape(shape), routing.weights.to(x.device).reshape(shape))
