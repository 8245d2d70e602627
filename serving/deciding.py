"""Decisions for requests that come at the same time: what waits while one batch is read is the next batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..runtime.decider import RequestDecider
from ..runtime.scopes.decision import Decision
from .errors import failure_of, queue_full, stopping
from .limits import Limits
from .metrics import Metrics

_Batch = list[tuple[Sequence[int], asyncio.Future[Decision]]]


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
        self._waiting: _Batch = []
        self._deciding: _Batch = []
        self._working: asyncio.Task[None] | None = None
        self._is_closed = False
        metrics.waiting.set_function(lambda: len(self._waiting))

    async def of(self, prompts: Sequence[Sequence[int]]) -> list[Decision]:
        """Return the decision for each prompt, given as tokens.

        Raises:
            ApiError: too many wait already, the model fails on a prompt, or the server stops.
        """
        if self._is_closed:
            raise stopping()
        most = self._limits.max_waiting
        if self._waiting and len(self._waiting) + len(prompts) > most:
            raise queue_full(len(self._waiting), most)
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Decision]] = [loop.create_future() for _ in prompts]
        self._waiting += zip(prompts, futures, strict=True)
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        try:
            return await asyncio.gather(*futures)
        finally:
            # The others of a request whose client left, or one of whose prompts failed, make room.
            for future in futures:
                future.cancel()
            self._waiting = _wanted(self._waiting)

    def close(self) -> None:
        """End the requests that wait with an error, and take no more."""
        self._is_closed = True
        for _, future in _wanted([*self._deciding, *self._waiting]):
            future.set_exception(stopping())

    async def _work(self) -> None:
        try:
            while batch := self._take():
                self._deciding = batch
                await self._decide(batch)
        finally:
            self._deciding, self._working = [], None

    async def _decide(self, batch: _Batch) -> None:
        """Decide a batch; one that fails is decided prompt by prompt, so that a prompt's fault is its own."""
        try:
            found = await asyncio.to_thread(self._decider.decide, [ids for ids, _ in batch])
        # Nor must it end the task that decides the next batch.
        except Exception as error:  # noqa: BLE001
            if len(batch) > 1:
                for each in batch:
                    await self._decide(_wanted([each]))
            elif left := _wanted(batch):
                left[0][1].set_exception(failure_of(error))
            return
        for (_, future), decision in zip(batch, found, strict=True):
            if not future.done():
                future.set_result(decision)

    def _take(self) -> _Batch:
        """Take the oldest prompts that are still wanted, as many as one batch may have."""
        self._waiting = _wanted(self._waiting)
        widest = 0
        for count, (ids, _) in enumerate(self._waiting):
            widest = max(widest, len(ids))
            is_full = count == self._limits.max_batch or widest * (count + 1) > self._limits.max_batch_tokens
            if count and is_full:
                break
        else:
            count = len(self._waiting)
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken


def _wanted(batch: _Batch) -> _Batch:
    return [(ids, future) for ids, future in batch if not future.done()]
