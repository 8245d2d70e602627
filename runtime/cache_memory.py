"""The decisions of bundles for the sequences in a cache, kept on the cache itself.

They live exactly as long as the sequences and are copied with them, and no two requests share them. When a
beam search reorders the rows of the cache, the memory's rows follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from ..schemas.errors import UsageError
from .scopes.decision import RequestDecision
from .scopes.routing_rule import RoutingRule

if TYPE_CHECKING:
    from .routing_record import RecordedRequest, RoutingRecord

_ATTRIBUTE = "_meteora_memory"


@dataclass(slots=True)
class ObservedBase:
    """The plain base's pass over the same sequences: its cache, and bool [B, T], False for padding."""

    cache: Any
    own: Tensor

    def select(self, rows: Tensor) -> None:
        """Reorder the sequences: row i becomes row ``rows[i]``."""
        rows = rows.to(self.own.device)
        # The one of the two that a cache of states has.
        self.cache.reorder_cache(rows)
        self.own = self.own[rows]

    def follow(self, tokens: int | None) -> None:
        """Cut to the first ``tokens`` tokens, as the routed model's cache was cropped.

        Raises:
            UsageError: the routed model continued without the base.
        """
        surplus = 0 if tokens is None else self.own.shape[1] - tokens
        if surplus < 0:
            raise UsageError(
                f"the cache holds {tokens} tokens, but the plain base has read {self.own.shape[1]} of them",
                hint="a request of scope `segment` must not be forced in between; begin it without a cache",
            )
        if surplus > 0:
            self._crop(surplus)
            self.own = self.own[:, :tokens]

    def _crop(self, tokens: int) -> None:
        try:
            self.cache.crop(-tokens)
        except (AttributeError, NotImplementedError, RuntimeError) as error:
            raise UsageError(
                f"{tokens} tokens were taken back, which the plain base's cache cannot: its layers keep a "
                "window, or a state, and not every token",
                hint="generate without guessed tokens, or route by token within "
                "`route_as(model, scope='token')`",
            ) from error


class CacheMemory:
    """The memory of one cache's sequences.

    Attributes:
        kept: the decision of each bundle, by PEFT's adapter name.
        observed: kept if a bundle's scope has the plain base read answers too.
        recorded: the request of these sequences in each record that is about them.
    """

    def __init__(self) -> None:
        self.kept: dict[str, RequestDecision] = {}
        self.observed: ObservedBase | None = None
        self.recorded: dict[RoutingRecord, RecordedRequest] = {}

    @classmethod
    def of(cls, cache: Any) -> Self | None:
        """Return the memory of a cache, if it has one."""
        found: Self | None = getattr(cache, _ATTRIBUTE, None)
        return found

    @classmethod
    def on(cls, cache: Any) -> Self:
        """Return the memory of a cache, which gets one now if it has none."""
        memory = cls.of(cache)
        if memory is None:
            memory = cls()
            setattr(cache, _ATTRIBUTE, memory)
            _follow_rows(cache)
        return memory

    @classmethod
    def attach(cls, cache: Any, kept: dict[str, RequestDecision], observed: ObservedBase | None) -> None:
        """Set the decisions of a cache, replacing any that it has."""
        memory = cls.on(cache)
        memory.kept, memory.observed = kept, observed

    def kept_by(self, adapter_name: str, rule: RoutingRule) -> RequestDecision | None:
        """Return the decision of a bundle by this rule, if there is one."""
        kept = self.kept.get(adapter_name)
        return kept if kept is not None and kept.rule == rule else None

    def select(self, rows: Tensor) -> None:
        """Reorder the sequences: row i becomes row ``rows[i]``."""
        self.kept = {name: kept.select(rows) for name, kept in self.kept.items()}
        if self.observed is not None:
            self.observed.select(rows)

    def repeat(self, repeats: int) -> None:
        """Repeat every row ``repeats`` times, one after the other."""
        if not self.kept:
            return
        sequences = next(iter(self.kept.values())).sequences
        self.select(torch.arange(sequences).repeat_interleave(repeats))


# The methods of a cache that move its rows.
_MOVERS: dict[str, Callable[[CacheMemory, Any], None]] = {
    "reorder_cache": CacheMemory.select,
    "batch_select_indices": CacheMemory.select,
    "batch_repeat_interleave": CacheMemory.repeat,
}


class _Followed:
    """A method of one cache that moves its rows, and the memory's with them."""

    def __init__(self, cache: Any, name: str) -> None:
        self._cache, self._name = cache, name

    def __call__(self, argument: Any) -> None:
        """Move the rows of both."""
        getattr(type(self._cache), self._name)(self._cache, argument)
        memory = CacheMemory.of(self._cache)
        if memory is not None:
            _MOVERS[self._name](memory, argument)


def _follow_rows(cache: Any) -> None:
    for name in _MOVERS:
        if hasattr(type(cache), name):
            setattr(cache, name, _Followed(cache, name))
