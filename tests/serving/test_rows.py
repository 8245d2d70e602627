"""The events of a request's rows: their order, their time, and what becomes of them when it is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from meteora_registry.serving.errors import ApiError, stopping
from meteora_registry.serving.rows import Events


@pytest.mark.parametrize("turns", range(6))
def test_request_that_is_cancelled_as_its_event_comes_stays_cancelled(turns: int) -> None:
    async def test() -> None:
        events = Events()
        waits = asyncio.create_task(events.get(600))
        await asyncio.sleep(0)
        events.put(0, "text")
        for _ in range(turns):
            await asyncio.sleep(0)
        was_over = waits.done()
        waits.cancel()
        await asyncio.wait([waits])
        assert waits.cancelled() != was_over

    asyncio.run(test())


def test_events_end_with_the_time_or_an_error() -> None:
    async def test() -> None:
        events = Events()
        with pytest.raises(TimeoutError):
            await events.get(0)
        events.put(1, "text")
        events.put(2, stopping())
        assert await events.get(600) == (1, "text")
        with pytest.raises(ApiError, match="shutting down"):
            await events.get(600)

    asyncio.run(test())


def test_event_for_a_server_that_was_stopped_is_dropped() -> None:
    async def test() -> Events:
        return Events()

    asyncio.run(test()).put(0, "text")
