"""What the scopes that look at a whole request decide, and keep with its cache."""

from __future__ import annotations

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
        prompt: bool [B, T], the tokens that the request consists of; the others are its answer.
        has_prompt: False where all tokens go on with sequences that have begun.
    """

    own: Tensor
    prompt: Tensor
    has_prompt: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """What one decision came to, in words.

    Attributes:
        sequence: the row of the batch.
        start: the first token that it serves; padding counts.
        end: the token after the last.
        members: who serves, best first, with ``weights``; empty where the base alone does. Of a segment the
            most likely one alone, although with ``top_k`` above 1 its tokens share their weight with others.
        confidence: the geometric mean posterior, over modules and tokens, of the most likely member.
    """

    sequence: int
    start: int
    end: int
    members: tuple[str, ...]
    weights: tuple[float, ...]
    confidence: float


class RequestDecision(Protocol):
    """What was decided for the sequences of one cache; kept as long as the cache is."""

    @property
    def rule(self) -> RoutingRule:
        """The rule that it was decided by."""
        ...

    @property
    def sequences(self) -> int:
        """How many there are."""
        ...

    def select(self, rows: Tensor) -> Self:
        """The same for other rows: row i becomes row ``rows[i]``, int64 [B']."""
        ...

    def advance(self, past_tokens: int | None, log_posterior: Tensor | None) -> Self:
        """The same after more tokens behind the first ``past_tokens``.

        ``log_posterior`` [B, T, L] is their evidence, where the scope asks for it.
        """
        ...

    def begin(self, stretch: Stretch, by_token: TokenPass) -> RoutingPass:
        """The pass over the latest tokens."""
        ...

    def describe(self, members: tuple[str, ...], tokens: int) -> tuple[Decision, ...]:
        """Every decision so far, of sequences that have this many tokens by now."""
        ...
