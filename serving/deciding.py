"""Decisions for requests that come at the same time: what waits while one batch is read is the next batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..runtime.decider import RequestDecider
from ..runtime.scopes.decision import Decision
from .errors import RETRY_SECONDS, ApiError
from .limits import Limits
from .metrics import Metrics


class Decisions:
    """The decisions of one bundle, made in a thread; the thread computes one batch at a time.

    Args:
        decider: makes them.
        limits: of batches, and of how many prompts wait.
        metrics: what is counted.
    """

    def __init__(self, decider: RequestDecider, limits: Limits, metrics: Metrics) -> None:
        self._decider = decider
        self._limits = limits
        self._metrics = metrics
        self._waiting: list[tuple[Sequence[int], asyncio.Future[Decision]]] = []
        self._working: asyncio.Task[None] | None = None

    async def of(self, prompts: Sequence[Sequence[int]]) -> list[Decision]:
        """Return the decision for each prompt, given as tokens.

        Raises:
            ApiError: too many wait already.
        """
        most = self._limits.max_waiting
        if self._waiting and len(self._waiting) + len(prompts) > most:
            raise ApiError(
                429,
                f"{len(self._waiting)} prompts wait already, of at most {most}; send the request again later",
                code="queue_full",
                retry_after=RETRY_SECONDS,
            )
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Decision]] = [loop.create_future() for _ in prompts]
        self._waiting += zip(prompts, futures, strict=True)
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        try:
            return await asyncio.gather(*futures)
        finally:
            self._note()

    async def _work(self) -> None:
        try:
            while batch := self._take():
                await self._decide(batch)
        finally:
            self._working = None

    async def _decide(self, batch: list[tuple[Sequence[int], asyncio.Future[Decision]]]) -> None:
        try:
            found = await asyncio.to_thread(self._decider.decide, [ids for ids, _ in batch])
        # Whatever goes wrong with one batch, the requests hear of it and the next batch is decided.
        except Exception as error:  # noqa: BLE001
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), decision in zip(batch, found, strict=True):
            if not future.done():
                future.set_result(decision)

    def _take(self) -> list[tuple[Sequence[int], asyncio.Future[Decision]]]:
        """Take the oldest prompts that are still wanted, as many as one batch may have."""
        self._waiting = [(ids, future) for ids, future in self._waiting if not future.done()]
        widest = 0
        for count, (ids, _) in enumerate(self._waiting):
            widest = max(widest, len(ids))
            is_full = count == self._limits.max_batch or widest * (count + 1) > self._limits.max_batch_tokens
            if count and is_full:
                break
        else:
            count = len(self._waiting)
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        self._note()
        return taken

    def _note(self) -> None:
        self._metrics.waiting.set(len(self._waiting))
