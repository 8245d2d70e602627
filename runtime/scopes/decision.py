"""Decisions of the scopes that decide ahead: made for whole requests and kept with their caches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, Self

from torch import Tensor

from .passes import RoutingPass, TokenPass
from .routing_rule import RoutingRule


@dataclass(frozen=True, slots=True)
class Stretch:
    """The tokens of one forward pass.

    Attributes:
        own: bool [B, T], False where a token is padding.
        prompt: bool [B, T], the request's own tokens; the others are its answer.
        has_prompt: False if all tokens continue sequences that were begun earlier.
        counted: bool [B, T], the tokens of the prompt whose evidence counts; None for all.
        ids: int64 [B, T], the tokens' ids; None where they came as embeddings.
    """

    own: Tensor
    prompt: Tensor
    has_prompt: bool
    counted: Tensor | None = None
    ids: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision, with its members by name.

    Attributes:
        sequence: the row of the batch.
        start: the first token that it serves; padding counts.
        end: the token after the last.
        members: those that serve, best first, with ``weights``; empty if the base alone does. Of a segment
            the most likely one alone, although with ``top_k`` above 1 its tokens share their weight with
            others.
        confidence: the geometric mean posterior, over modules and tokens, of the most likely member. With
            request gates, the share of the members' own prompts that are less like them.
        evidence: how likely each member is by what its gates read, in the bundle's order; they sum to 1. With
            request gates, what is missing to 1 is that of prompts that no member was made for.
        item: where the answer is served in the order of the prompt's numbered list, the number of the item
            whose decision this is; None where its own text decided.
    """

    sequence: int
    start: int
    end: int
    members: tuple[str, ...]
    weights: tuple[float, ...]
    confidence: float
    evidence: tuple[float, ...] = ()
    item: int | None = None


def longest_of(decisions: Iterable[Decision]) -> Decision | None:
    """Return the decision that serves the most tokens, the first of several; None of none."""
    return max(decisions, key=lambda each: each.end - each.start, default=None)


class RequestDecision(Protocol):
    """The decisions for the sequences of one cache; kept as long as the cache is."""

    @property
    def rule(self) -> RoutingRule:
        """The rule that decided."""
        ...

    @property
    def sequences(self) -> int:
        """The number of sequences."""
        ...

    def select(self, rows: Tensor) -> Self:
        """Return the decisions of other rows: row i becomes row ``rows[i]``, int64 [B']."""
        ...

    def advance(self, past_tokens: int | None, log_posterior: Tensor | None, stretch: Stretch) -> Self:
        """Return the decisions after more tokens, ``stretch``, behind the first ``past_tokens``.

        ``log_posterior`` [B, T, L] is their evidence, if the scope needs it.
        """
        ...

    def begin(self, stretch: Stretch, past_tokens: int | None, by_token: TokenPass) -> RoutingPass:
        """Return the pass over the tokens behind the first ``past_tokens``."""
        ...

    def serves_as(self, other: Self, tokens: int) -> bool:
        """Return whether the first ``tokens`` tokens are served as by another decision of the same rule."""
        ...

    def describe(self, members: tuple[str, ...], tokens: int) -> tuple[Decision, ...]:
        """Return every decision so far, of sequences that have this many tokens by now."""
        ...
