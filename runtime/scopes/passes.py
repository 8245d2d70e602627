"""One forward pass of the base model, as a bundle's layers see it.

Every scope comes down to one question of a layer, for the tokens it was given: *which members serve them?*
The answer is the layer's own gate, a routing that was decided elsewhere, or that no member does.

Passes of scope ``token`` (the paper's) and ``layer`` are here with those that force a choice; the scopes that
decide ahead make their passes in ``prompt.py`` and ``segment.py``, from the ``Evidence`` that a pass of the
plain base gathers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from ...kernels.routing import FixedRouting, Gate, Routing, fixed_routings, gate_logits
from ...schemas.errors import UsageError
from ...schemas.trace import ModulePlace

# In place of a member's number: the base alone serves a token.
BASE_ALONE = -1

# Who serves a module's tokens: its own gate decides, or a routing that was decided elsewhere.
Choice = Gate | Routing | FixedRouting


def as_routing(choice: Routing | FixedRouting, x: Tensor) -> Routing:
    """Return a routing for each token of x [..., in]."""
    return choice if isinstance(choice, Routing) else choice.for_tokens(x.shape[:-1], x.device)


class RoutingPass(ABC):
    """A forward pass: it answers each module, and hears of the decisions of gates."""

    @abstractmethod
    def choose(self, path: str, x: Tensor, gate: Gate | None) -> Choice | None:
        """Answer a module with input x [..., in] and its own gate, where it has one."""

    def for_tokens(self, past_tokens: int | None, shape: tuple[int, int]) -> RoutingPass:
        """Return the pass over tokens ``shape`` [B, T] behind the first ``past_tokens``.

        Asked of a pass that replaces every other, most of which serve all tokens alike. ``past_tokens`` is
        None if the cache does not count them.
        """
        return self

    def observe(self, path: str, x: Tensor) -> None:  # noqa: B027 (as for ``report``)
        """Take in the input x [..., in] of a module that no member touches."""

    def report(  # noqa: B027 (most passes have no use for it)
        self, path: str, routing: Routing | FixedRouting, x: Tensor
    ) -> None:
        """Take in the decision of a module's gate for x [..., in], after the answer was that gate.

        Most passes have no use for it.
        """


@dataclass(frozen=True, slots=True)
class ObservedPass(RoutingPass):
    """The plain base's pass: no member adds anything, and the evidence of some modules' gates is gathered."""

    evidence: Evidence
    modules: frozenset[str]

    def choose(self, path: str, x: Tensor, gate: Gate | None) -> None:
        """Return None: no member serves any token."""
        if gate is not None and path in self.modules:
            self.evidence.add(path, gate_logits(x, gate.weight, gate.bias, kind=gate.kind, eps=gate.eps))


@dataclass(frozen=True, slots=True)
class ForcedPass(RoutingPass):
    """A pass in which one member serves every token with weight 1."""

    member: int

    def choose(self, path: str, x: Tensor, gate: Gate | None) -> FixedRouting:
        """Return the member, whatever the token."""
        return FixedRouting.to(self.member)


@dataclass(frozen=True, slots=True)
class BasePass(RoutingPass):
    """A pass of the base alone: no member serves any token."""

    def choose(self, path: str, x: Tensor, gate: Gate | None) -> None:
        """Return None, whatever the token."""


@dataclass(frozen=True, slots=True)
class UniformPass(RoutingPass):
    """A pass in which each of ``members`` members serves every token with the same weight."""

    members: int

    def choose(self, path: str, x: Tensor, gate: Gate | None) -> Routing:
        """Return a routing to all of them."""
        shape = (*x.shape[:-1], self.members)
        everyone = torch.arange(self.members, device=x.device).expand(shape)
        return Routing(everyone, torch.full(shape, 1 / self.members, device=x.device))


@dataclass(frozen=True, slots=True)
class DecidedPass(RoutingPass):
    """A pass whose routing [B, T, k] was decided before it began; all modules take it."""

    routing: Routing

    def choose(self, path: str, x: Tensor, gate: Gate | None) -> Routing:
        """Return the decision for the module's tokens [B, T] or [B * T]."""
        return fit_tokens(self.routing, x, path)


@dataclass(frozen=True, slots=True)
class GivenPass(RoutingPass):
    """The passes over sequences whose members are given token by token.

    Attributes:
        members: int64 [B, T], the place of each token's member, ``BASE_ALONE`` for none.
        beyond: who serves the tokens behind them; None to refuse any.
    """

    members: Tensor
    beyond: int | None

    def for_tokens(self, past_tokens: int | None, shape: tuple[int, int]) -> RoutingPass:
        """Return the pass over these tokens.

        Raises:
            UsageError: there are more sequences or tokens than were given, or the cache does not count them.
        """
        sequences, given = self.members.shape
        if shape[0] != sequences:
            raise UsageError(
                f"the members of {sequences} sequences are given, the pass has {shape[0]}",
                hint="give those of each row of the batch; each beam is a row too",
            )
        if past_tokens is None:
            raise UsageError(
                "members are given token by token, but the base's cache does not count its tokens",
                hint="read the whole sequence in one pass",
            )
        end = past_tokens + shape[1]
        members = self.members[:, past_tokens:end]
        if end > given:
            if self.beyond is None:
                raise UsageError(
                    f"the members of {given} tokens are given, the pass reads {end}",
                    hint="give those of prompt and answer, padding included, or state who is `beyond`",
                )
            more = torch.full((sequences, shape[1] - members.shape[1]), self.beyond, dtype=torch.int64)
            members = torch.cat([members, more], dim=1)
        served = members != BASE_ALONE
        selection = torch.where(served, members, 0).unsqueeze(-1)
        return decided_pass(Routing(selection, served.float().unsqueeze(-1)))

    def choose(self, path: str, x: Tensor, gate: Gate | None) -> NoReturn:
        """Refuse: a module that is called by itself does not know its tokens' places."""
        raise UsageError(
            f"`{path}` was called outside a forward pass of its model, but the members are given token by "
            "token",
            hint="call the model itself",
        )


@dataclass(frozen=True, slots=True)
class AgreedPass(RoutingPass):
    """A pass in which one decision serves every token; all modules take it."""

    routing: FixedRouting

    def choose(self, path: str, x: Tensor, gate: Gate | None) -> FixedRouting:
        """Return the decision, whatever the token."""
        return self.routing


def decided_pass(routing: Routing) -> RoutingPass:
    """Return the pass of a routing [B, T, k] that was decided before it."""
    k = routing.selection.shape[-1]
    selection, weights = routing.selection.reshape(-1, k), routing.weights.reshape(-1, k)
    first = Routing(selection[:1], weights[:1])
    if not len(selection) or ((selection != first.selection) | (weights != first.weights)).any():
        return DecidedPass(routing)
    return AgreedPass(*fixed_routings(first))


@dataclass(frozen=True, slots=True)
class UndecidedPass(RoutingPass):
    """The pass outside any call of the model: a module called by itself has no decision to follow."""

    scope: str

    def choose(self, path: str, x: Tensor, gate: Gate | None) -> NoReturn:
        """Refuse."""
        raise UsageError(
            f"`{path}` was called outside a forward pass of its model, but the bundle's scope `{self.scope}` "
            "decides for a whole request",
            hint="call the model itself, or route by token within `route_as(model, scope='token')`",
        )


def fit_tokens(routing: Routing, x: Tensor, path: str) -> Routing:
    """Return a routing [B, T, k] shaped for a module that may see its tokens as one row.

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


class Evidence:
    """The log posteriors of one bundle's members for each token of a call, averaged over the modules.

    Holds one float32 [B, T, L], whatever the number of modules.
    """

    def __init__(self, batch: int, tokens: int, members: int) -> None:
        self._shape = (batch, tokens, members)
        self._sum: Tensor | None = None
        self._modules = 0

    def add(self, path: str, logits: Tensor) -> None:
        """Add one module's logits [B, T, L] or [B * T, L].

        Raises:
            UsageError: the module saw other tokens than the model was given.
        """
        self._check(path, logits)
        self._add(torch.log_softmax(logits, dim=-1))

    def _add(self, found: Tensor) -> None:
        found = found.reshape(self._shape)
        self._modules += 1
        self._sum = found if self._sum is None else self._sum + found.to(self._sum.device)

    def _check(self, path: str, found: Tensor) -> None:
        if found.numel() != torch.Size(self._shape).numel():
            raise UsageError(
                f"`{path}` saw tokens {list(found.shape[:-1])}, the model was given "
                f"{list(self._shape[:-1])}: its gate has no way to know which sequence they belong to",
                hint="route by token within `route_as(model, scope='token')`",
            )

    @property
    def mean(self) -> Tensor:
        """Float32 [B, T, L], the mean over modules.

        Raises:
            UsageError: no module with a gate was called.
        """
        if self._sum is None:
            raise UsageError("no module with a gate was called, so nothing can be decided")
        return self._sum / self._modules


@dataclass(frozen=True, slots=True)
class _Waiting:
    routing: Routing | FixedRouting
    tokens: torch.Size
    takers: set[str]


class SharedRoutings:
    """Routings on their way from the modules that decide to those that take them, within one pass.

    A routing is handed to each taker once, and is dropped after the last, so any that is waiting was decided
    in this very pass.
    """

    def __init__(self, sources: Mapping[str, str]) -> None:
        self._sources = sources
        self._takers: dict[str, frozenset[str]] = {}
        for path, source in sources.items():
            self._takers[source] = self._takers.get(source, frozenset()) | {path}
        self._waiting: dict[str, _Waiting] = {}

    def put(self, path: str, routing: Routing | FixedRouting, x: Tensor) -> None:
        """Keep the routing of ``path`` for x [..., in] for the modules that take it, if there are any."""
        if path in self._takers:
            self._waiting[path] = _Waiting(routing, x.shape[:-1], set(self._takers[path]))

    def take(self, path: str, x: Tensor) -> Routing | FixedRouting:
        """Take the routing that the source of ``path`` decided for these tokens in this pass.

        Raises:
            UsageError: the source has not run in this pass, or for other tokens.
        """
        source = self._sources[path]
        waiting = self._waiting.get(source)
        if waiting is None or path not in waiting.takers:
            raise UsageError(
                f"`{path}` takes its routing from `{source}`, which decided nothing for it in this pass",
                hint="the source must run first; fuse or fit the bundle without `gate.sources` for these",
            )
        waiting.takers.discard(path)
        if not waiting.takers:
            del self._waiting[source]
        if waiting.tokens != x.shape[:-1]:
            raise UsageError(
                f"`{path}` was given tokens {list(x.shape[:-1])}, but its source `{source}` decided for "
                f"{list(waiting.tokens)}"
            )
        routing = waiting.routing
        if isinstance(routing, FixedRouting):
            return routing
        return Routing(routing.selection.to(x.device), routing.weights.to(x.device))


class TokenPass(RoutingPass):
    """A pass in which every module decides by its own gate, and those with a source take its routing."""

    def __init__(self, shared: SharedRoutings) -> None:
        self._shared = shared

    def choose(self, path: str, x: Tensor, gate: Gate | None) -> Choice:
        """Return the module's own gate, or what its source decided."""
        return self._shared.take(path, x) if gate is None else gate

    def report(self, path: str, routing: Routing | FixedRouting, x: Tensor) -> None:
        """Hand the decision to the modules that take it."""
        self._shared.put(path, routing, x)


def layer_of(path: str) -> str:
    """Return the layer that a module belongs to: its path up to the first number, or itself without one."""
    return ModulePlace.of(path).layer or path


class LayerPass(RoutingPass):
    """A pass in which the first module of a layer decides and the rest of the layer follows it.

    The module that decided first does so again when it runs again: gradient checkpointing recomputes a
    layer from its beginning, and finds there what the forward pass found.
    """

    def __init__(self) -> None:
        self._decided: dict[str, tuple[str, Routing | FixedRouting]] = {}

    def choose(self, path: str, x: Tensor, gate: Gate | None) -> Choice:
        """Return the module's own gate if it is the layer's first, else what that one decided.

        Raises:
            UsageError: the module has no gate and none of its layer has run, or for other tokens.
        """
        decider, routing = self._decided.get(layer_of(path), (path, None))
        if routing is not None and decider != path:
            return routing if isinstance(routing, FixedRouting) else fit_tokens(routing, x, path)
        if gate is None:
            raise UsageError(f"`{path}` has no gate of its own, and no module of its layer decided before it")
        return gate

    def report(self, path: str, routing: Routing | FixedRouting, x: Tensor) -> None:
        """Keep the decision for the rest of the layer."""
        self._decided[layer_of(path)] = (path, routing)
