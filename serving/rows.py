"""One prompt of a request on its way: it waits, a thread answers it, and its request hears of that."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .answers import FinishReason, Routed
from .errors import ApiError
from .names import Target


@dataclass(frozen=True, slots=True)
class Began:
    """The first token is there, and who answers is decided."""

    routed: Routed


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is complete."""

    reason: FinishReason
    tokens: int
    routed: Routed
    scores: Mapping[str, Any] | None = None


Event = Began | str | Ended | ApiError


@dataclass(frozen=True, slots=True)
class Sampling:
    """The way to choose the tokens of an answer; a temperature of 0, or close to it, takes the likeliest."""

    temperature: float
    top_p: float
    seed: int | None


class Events:
    """The events of one request's rows in their order; other threads write them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    def put(self, place: int, event: Event) -> None:
        """Pass on what happened to a row."""
        # The loop of a server that was stopped is closed.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, (place, event))

    async def get(self, seconds: float) -> tuple[int, Event]:
        """Return the place of a row and what happened to it, within so many seconds.

        Raises:
            ApiError: the row cannot be answered.
            TimeoutError: nothing happened until then.
        """
        # Not `wait_for`: before Python 3.12 it loses a cancellation that comes with the event.
        async with asyncio.timeout(seconds):
            place, event = await self._events.get()
        if isinstance(event, ApiError):
            raise event
        return place, event


@dataclass(eq=False, slots=True)
class Row:
    """One prompt.

    Attributes:
        place: among the prompts of its request.
        target: what is to answer.
        ids: the tokens of the prompt.
        max_new_tokens: the longest answer.
        stops: texts that end it.
        sampling: how its tokens are chosen.
        events: those of its request.
        top_logprobs: how many of the likeliest tokens are stated at each place of the prompt, whose
            probability is asked for; None if its answer is.
        has_begun: whether it has its first token.
        is_cancelled: whether an answer is no longer wanted; set from any thread, and never taken back.
    """

    place: int
    target: Target
    ids: Sequence[int]
    max_new_tokens: int
    stops: tuple[str, ...]
    sampling: Sampling
    events: Events
    top_logprobs: int | None = None
    has_begun: bool = False
    is_cancelled: bool = False

    def goes_with(self, other: Row) -> bool:
        """Return whether both can be in one batch."""
        return self.target == other.target and (self.top_logprobs is None) == (other.top_logprobs is None)

    def emit(self, event: Event) -> None:
        """Pass on what happened."""
        self.has_begun |= isinstance(event, Began)
        self.events.put(self.place, event)
