"""Decisions of the router: what waits for one, what is left, what fails, and what is stopped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from meteora_registry.runtime import Decision
from meteora_registry.serving.deciding import Decisions
from meteora_registry.serving.errors import ApiError
from meteora_registry.serving.limits import Limits
from meteora_registry.serving.metrics import Metrics
from support.patience import PATIENCE_SECONDS

POISON = 13


class HeldDecider:
    """A decider that decides when it is allowed to, and fails on every batch with `POISON`."""

    def __init__(self) -> None:
        self.batches: list[list[Sequence[int]]] = []
        self.begun = threading.Semaphore(0)
        self.permits = threading.Semaphore(0)

    def decide(self, prompts: Sequence[Sequence[int]]) -> list[Decision]:
        """Return a decision for each prompt, with its first token as the name of the member."""
        self.batches.append([*prompts])
        self.begun.release()
        assert self.permits.acquire(timeout=PATIENCE_SECONDS)
        if any(POISON in prompt for prompt in prompts):
            raise RuntimeError("no thirteens")
        return [Decision(row, 0, 1, (str(ids[0]),), (1.0,), 0.5) for row, ids in enumerate(prompts)]


class Deciding:
    """Decisions that the first prompt, `[0]`, holds up."""

    def __init__(self, **limits: Any) -> None:
        self.decider = HeldDecider()
        self.metrics = Metrics()
        self.decisions = Decisions(self.decider, Limits(**limits), self.metrics)  # type: ignore[arg-type]

    async def begin(self) -> asyncio.Task[list[Decision]]:
        """Return the request that is being decided."""
        task = asyncio.create_task(self.decisions.of([[0]]))
        await asyncio.to_thread(self.decider.begun.acquire)
        return task

    async def ask(self, *prompts: Sequence[int]) -> asyncio.Task[list[Decision]]:
        """Return a request that waits."""
        task = asyncio.create_task(self.decisions.of(prompts))
        await asyncio.sleep(0)
        return task

    @property
    def waiting(self) -> float:
        """The prompts that wait, by the metrics."""
        families = text_string_to_metric_families(self.metrics.page().decode())
        return next(each.samples[0].value for each in families if each.name == "meteora_waiting")


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine."""
    asyncio.run(test())  # type: ignore[arg-type]


def test_prompts_that_wait_are_decided_as_one_batch_each_for_its_request() -> None:
    deciding = Deciding()

    async def test() -> None:
        first = await deciding.begin()
        others = [await deciding.ask([1], [2, 2]), await deciding.ask([3])]
        assert deciding.waiting == 3
        deciding.decider.permits.release(2)
        found = await asyncio.gather(first, *others)
        assert [[each.members for each in decisions] for decisions in found] == [
            [("0",)],
            [("1",), ("2",)],
            [("3",)],
        ]
        assert deciding.waiting == 0

    run(test)
    assert deciding.decider.batches == [[[0]], [[1], [2, 2], [3]]]


def test_padding_counts_where_a_batch_is_bounded() -> None:
    deciding = Deciding(max_batch_tokens=6)

    async def test() -> None:
        first = await deciding.begin()
        others = [await deciding.ask(ids) for ids in ([1], [2, 2, 2], [3], [4] * 7)]
        deciding.decider.permits.release(9)
        await asyncio.gather(first, *others)

    run(test)
    assert deciding.decider.batches[1:] == [[[1], [2, 2, 2]], [[3]], [[4] * 7]]


def test_request_whose_client_left_makes_room_at_once() -> None:
    deciding = Deciding(max_waiting=2)

    async def test() -> None:
        first = await deciding.begin()
        left = await deciding.ask([1], [2])
        with pytest.raises(ApiError, match="2 prompts wait already, of at most 2") as found:
            await deciding.decisions.of([[3]])
        assert (found.value.status, found.value.code, found.value.retry_after) == (429, "queue_full", 1)
        left.cancel()
        await asyncio.wait([left])
        assert deciding.waiting == 0
        others = await deciding.ask([4], [5])
        deciding.decider.permits.release(2)
        await asyncio.gather(first, others)

    run(test)
    assert deciding.decider.batches == [[[0]], [[4], [5]]]


def test_prompt_on_which_the_decision_fails_fails_alone() -> None:
    deciding = Deciding()

    async def test() -> None:
        first = await deciding.begin()
        others = [await deciding.ask(ids) for ids in ([12], [POISON], [14])]
        deciding.decider.permits.release(9)
        found = await asyncio.gather(first, *others, return_exceptions=True)
        assert [isinstance(each, ApiError) and each.status for each in found] == [False, False, 500, False]
        assert await deciding.decisions.of([[15]])

    run(test)


def test_request_with_a_prompt_that_fails_does_not_have_its_others_decided() -> None:
    deciding = Deciding(max_batch=1)

    async def test() -> None:
        first = await deciding.begin()
        failing = await deciding.ask([POISON], [1], [2])
        deciding.decider.permits.release(9)
        await first
        with pytest.raises(ApiError, match="the model failed on this prompt"):
            await failing
        await deciding.decisions.of([[3]])

    run(test)
    assert [[2]] not in deciding.decider.batches


def test_requests_that_wait_when_the_server_stops_are_answered_with_that() -> None:
    deciding = Deciding()

    async def test() -> None:
        first = await deciding.begin()
        waits = await deciding.ask([1])
        deciding.decisions.close()
        for task in (first, waits, await deciding.ask([2])):
            with pytest.raises(ApiError, match="shutting down"):
                await task
        deciding.decider.permits.release(9)

    run(test)
    assert deciding.decider.batches == [[[0]]]
