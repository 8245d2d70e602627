"""A record of which member each token took while a model ran."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..kernels.routing import FixedRouting, Routing
from .cache_memory import CacheMemory
from .calls import ForwardCall
from .scopes.decision import Decision, RequestDecision

# What rounding leaves of 1, and no token's share.
_ROUNDING = 1e-5


class RoutingRecord:
    """The routings of one request: of one forward pass, or of one generation with its cache.

    It is always about the latest request, of the thread that reads it if that made any. Each pass is added
    whole when it has ended, to the request that its cache belongs to, so threads do not mix their requests.
    With a beam search a row is a beam's place at that step.
    """

    def __init__(self, members: tuple[str, ...]) -> None:
        self.members = members
        self._latest: RecordedRequest | None = None
        self._latest_of: dict[int, RecordedRequest] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the same record: a copied cache, or a copied model, goes on in it."""
        return self

    @property
    def modules(self) -> dict[str, Routing]:
        """By module path: selection int64 and weights float32, both [B, T, k].

        T counts all tokens that went through the model, the prompt's and its padding first. Where the
        base alone served a token its selection is -1 and its weights are 0.
        """
        request = self._read
        return {} if request is None else request.modules

    def forget_modules(self) -> None:
        """Forget ``modules``, so that a long answer keeps nothing for each of its tokens."""
        request = self._read
        if request is not None:
            request.forget_passes()

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The decisions for whole requests or segments; empty in the scopes that decide by token."""
        request = self._read
        if request is None or request.decision is None:
            return ()
        return request.decision.describe(self.members, request.tokens)

    def shares(self, row: int = 0, *, start: int = 0, end: int | None = None) -> dict[str | None, float]:
        """Return each member's share of a sequence's tokens, a mean over modules; None is the base.

        Args:
            row: the sequence.
            start: the first token that counts; padding is counted.
            end: the token after the last; by default all that were read.
        """
        totals = torch.zeros(len(self.members))
        modules = self.modules.values()
        for found in modules:
            members, weights = found.selection[row, start:end], found.weights[row, start:end]
            served = weights.new_zeros(len(self.members))
            served.index_add_(0, members.clamp(min=0).reshape(-1), weights.reshape(-1))
            totals += served.cpu() / max(len(members), 1) / len(modules)
        shares: dict[str | None, float] = dict(zip(self.members, totals.tolist(), strict=True))
        rest = 1 - sum(shares.values())
        return shares | {None: rest if rest > _ROUNDING else 0.0}

    @property
    def _read(self) -> RecordedRequest | None:
        return self._latest_of.get(threading.get_ident(), self._latest)

    def turn_to(self, request: RecordedRequest) -> None:
        """Make a request the latest one, of this thread and of all."""
        self._latest = self._latest_of[threading.get_ident()] = request


class RecordedRequest:
    """The passes of one request, and its decision where the scope decides ahead."""

    def __init__(self) -> None:
        self.decision: RequestDecision | None = None
        self.tokens = 0
        self._passes: list[dict[str, _Served]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> RecordedRequest:
        """Return a request that goes on by itself; nothing changes a pass that is recorded."""
        copied = RecordedRequest()
        copied.decision, copied.tokens, copied._passes = self.decision, self.tokens, [*self._passes]
        return copied

    @property
    def modules(self) -> dict[str, Routing]:
        """The passes joined, by module path."""
        steps: dict[str, list[_Served]] = {}
        for served in self._passes:
            for path, step in served.items():
                steps.setdefault(path, []).append(step)
        return {path: _joined(found) for path, found in steps.items()}

    def forget_passes(self) -> None:
        """Forget the passes; the decision and the count of tokens stay."""
        self._passes.clear()

    def add(self, served: dict[str, _Served], tokens: int, decision: RequestDecision | None) -> None:
        """Add a pass."""
        self._passes.append(served)
        self.tokens += tokens
        self.decision = decision or self.decision


class PassRecord:
    """The routings of one pass, by module path, until the pass has ended."""

    def __init__(self, record: RoutingRecord, call: ForwardCall | None) -> None:
        self.decision: RequestDecision | None = None
        self._record = record
        self._call = call
        self._batch, self._tokens = (1, 0) if call is None else call.leading_shape
        self._served: dict[str, _Served] = {}
        self._is_complete = False

    @classmethod
    def alone(cls, record: RoutingRecord | None) -> Self | None:
        """Return the record of a module that is called by itself."""
        return None if record is None else cls(record, None)

    def add(self, path: str, choice: Routing | FixedRouting, x: Tensor) -> None:
        """Record what served one module's tokens x [..., in].

        A layer that a backward pass computes again adds nothing.
        """
        if self._is_complete or path in self._served:
            return
        tokens = x.shape[:-1].numel() // max(self._batch, 1)
        if isinstance(choice, Routing):
            # The graph of a training step must not outlive the step.
            choice = Routing(choice.selection.detach(), choice.weights.detach())
        self._served[path] = _Served(choice, self._batch, tokens, x.device)
        if self._call is None:
            self.commit(None)

    def commit(self, cache: Any) -> None:
        """Add the pass to its request, which goes on in ``cache`` if there is one."""
        self._is_complete = True
        memory = None if cache is None else CacheMemory.on(cache)
        is_new = self._call is None or self._call.is_new
        request = None if memory is None or is_new else memory.recorded.get(self._record)
        if request is None:
            request = RecordedRequest()
        request.add(self._served, self._tokens, self.decision)
        if memory is not None:
            memory.recorded[self._record] = request
        self._record.turn_to(request)


@dataclass(frozen=True, slots=True)
class _Served:
    """The choice that served a module's tokens in one pass.

    It is kept as it was decided: a table in each of 210 modules takes as long as decoding the token, and most
    are not read.
    """

    choice: Routing | FixedRouting
    batch: int
    tokens: int
    device: torch.device

    def goes_on(self, earlier: _Served) -> bool:
        """Return whether one fixed routing serves the tokens of both, so that one table can have them."""
        return (
            isinstance(self.choice, FixedRouting)
            and self.choice == earlier.choice
            and (self.batch, self.device) == (earlier.batch, earlier.device)
        )

    @property
    def table(self) -> Routing:
        """The routing [B, T, k]; -1 where the base alone served a token."""
        choice = self.choice
        if isinstance(choice, FixedRouting):
            choice = choice.for_tokens((self.batch, self.tokens), self.device)
        shape = (self.batch, self.tokens, choice.selection.shape[-1])
        weights = choice.weights.reshape(shape)
        is_served = weights.bool().any(dim=-1, keepdim=True)
        return Routing(torch.where(is_served, choice.selection.reshape(shape), -1), weights)


def _joined(steps: Iterable[_Served]) -> Routing:
    tables = [step.table for step in _merged(steps)]
    # Steps may differ in k: a block with another top_k may be nested within an answer.
    k = max(table.selection.shape[-1] for table in tables)
    return Routing(
        torch.cat([_widened(table.selection, k, -1) for table in tables], dim=1),
        torch.cat([_widened(table.weights, k, 0.0) for table in tables], dim=1),
    )


def _merged(steps: Iterable[_Served]) -> Iterator[_Served]:
    """Yield the steps, those in a row that have one fixed routing as one."""
    last: _Served | None = None
    for step in steps:
        if last is not None and step.goes_on(last):
            last = replace(last, tokens=last.tokens + step.tokens)
            continue
        if last is not None:
            yield last
        last = step
    if last is not None:
        yield last


def _widened(tensor: torch.Tensor, k: int, value: float) -> torch.Tensor:
    return nn.functional.pad(tensor, (0, k - tensor.shape[-1]), value=value)
