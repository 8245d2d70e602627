"""The queue and the batches: full, cancelled, too slow, failing, and stopped while requests run."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable

import httpx2
import openai
import pytest

from meteora_registry.runtime import LoadedBundle
from meteora_registry.serving.limits import Limits
from meteora_registry.serving.rows import Row
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT
from support.patience import PATIENCE_SECONDS, wait_until
from support.serving import NAME, Serving, asking, held, metric, post, running, serving_bundle

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]


def test_prompts_that_wait_are_answered_in_one_batch_each_with_its_own_length(loaded: LoadedBundle) -> None:
    lengths = {"w2": 2, "w3 w4": 5, "w5 w6 w7": 3}
    expected = [loaded.generate(prompt, max_new_tokens=tokens) for prompt, tokens in lengths.items()]
    with serving_bundle(loaded, Limits(batches=1)) as served, asking() as ask:
        with held(loaded) as passes:
            first = ask(served, prompt="w1", max_tokens=1)
            passes.wait_for_a_pass()
            others = [ask(served, prompt=prompt, max_tokens=tokens) for prompt, tokens in lengths.items()]
            wait_until(lambda: running(served) == {"waiting": 3, "running": 1})
            # One pass for the first answer, and five for the longest of the others.
            passes.allow(1 + 5)
            assert [other.result().json()["choices"][0]["text"] for other in others] == expected
        assert first.result().status_code == 200


def test_prompts_for_other_members_wait_for_a_batch_of_their_own(loaded: LoadedBundle) -> None:
    with serving_bundle(loaded, Limits(batches=1)) as served, asking() as ask:
        with held(loaded) as passes:
            first = ask(served, max_tokens=1)
            passes.wait_for_a_pass()
            others = [ask(served, max_tokens=2, model=f"{NAME}/{name}") for name in ("base", "rank4", "base")]
            wait_until(lambda: running(served)["waiting"] == 3)
            passes.allow(1 + 2 + 2)
            found = [other.result().json() for other in others]
        assert first.result().status_code == 200
    assert [each["meteora"]["member"] for each in found] == [None, "rank4", None]
    assert found[0]["choices"] == found[2]["choices"] != found[1]["choices"]


def test_full_queue_is_refused_with_the_time_to_ask_again(loaded: LoadedBundle) -> None:
    with serving_bundle(loaded, Limits(batches=1, max_waiting=2)) as served, asking() as ask:
        with held(loaded) as passes:
            taken = [ask(served)]
            passes.wait_for_a_pass()
            taken += [ask(served), ask(served)]
            wait_until(lambda: running(served)["waiting"] == 2)
            refused = post(served)
            with (
                openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
                pytest.raises(openai.RateLimitError),
            ):
                client.completions.create(model=NAME, prompt="w1")
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "queue_full"
        assert [each.result().status_code for each in taken] == [200, 200, 200]
        assert post(served).status_code == 200


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
def test_client_that_leaves_frees_its_slot(loaded: LoadedBundle, is_stream: bool) -> None:
    with serving_bundle(loaded, Limits(batches=1)) as served, asking() as ask:
        with held(loaded) as passes:
            leave_while_it_runs(served, passes.allow if is_stream else None, passes.wait_for_a_pass)
            # The cancelled answer ends with the pass that runs; without that it would take the others.
            passes.allow(1 + 2)
            assert ask(served, max_tokens=2).result().status_code == 200
        # A row leaves the batch just after its answer.
        wait_until(lambda: running(served) == {"waiting": 0, "running": 0})


def leave_while_it_runs(
    served: Serving, allow: Callable[[int], None] | None, wait_for_a_pass: Callable[[], None]
) -> None:
    """Ask for a long answer and leave: after its first token if passes can be allowed, else before."""
    body = {"model": NAME, "prompt": "w1 w2", "max_tokens": 40, "stream": allow is not None}

    async def leave() -> None:
        async with httpx2.AsyncClient(timeout=PATIENCE_SECONDS) as client:
            sending = asyncio.create_task(client.post(f"{served.url}/v1/completions", json=body))
            await asyncio.to_thread(wait_for_a_pass)
            sending.cancel()
            await asyncio.wait([sending])

    async def leave_stream() -> None:
        async with (
            httpx2.AsyncClient(timeout=PATIENCE_SECONDS) as client,
            client.stream("POST", f"{served.url}/v1/completions", json=body) as answer,
        ):
            async for line in answer.aiter_lines():
                if line:
                    break
        await asyncio.to_thread(wait_for_a_pass)

    if allow is not None:
        allow(1)
    asyncio.run(leave() if allow is None else leave_stream())
    ended = {"route": "/v1/completions", "status": "499" if allow is None else "200"}
    wait_until(lambda: metric(served, "meteora_requests_total", **ended) == 1)


def test_client_that_leaves_the_queue_makes_room(loaded: LoadedBundle) -> None:
    with serving_bundle(loaded, Limits(batches=1)) as served, asking() as ask:
        with held(loaded) as passes:
            first = ask(served)
            passes.wait_for_a_pass()
            leave_while_it_runs(served, None, lambda: wait_until(lambda: running(served)["waiting"] == 1))
            assert running(served) == {"waiting": 0, "running": 1}
        assert first.result().status_code == 200


def test_answer_that_takes_too_long_is_ended_with_an_error(loaded: LoadedBundle) -> None:
    with serving_bundle(loaded, Limits(batches=1, answer_seconds=0.2)) as served, asking() as ask:
        with held(loaded) as passes:
            whole = ask(served).result()
            passes.allow(1)
            assert (whole.status_code, whole.json()["error"]["code"]) == (504, "timeout")
        with held(loaded) as passes:
            passes.allow(1)
            streamed = ask(served, stream=True).result()
            assert streamed.status_code == 200
            assert '"code": "timeout"' in streamed.text.splitlines()[-2]
            assert "[DONE]" not in streamed.text
        wait_until(lambda: running(served) == {"waiting": 0, "running": 0})


def test_prompt_that_fails_fails_alone(loaded: LoadedBundle) -> None:
    def fail(_module: object, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        ids = kwargs["input_ids"]
        if (ids == 13).any():
            raise RuntimeError("no thirteens")

    with serving_bundle(loaded, Limits(batches=1)) as served, asking() as ask:
        handle = loaded.model.get_base_model().register_forward_pre_hook(fail, with_kwargs=True)
        with held(loaded) as passes:
            first = ask(served, max_tokens=1)
            passes.wait_for_a_pass()
            others = [ask(served, prompt=[token], max_tokens=1) for token in (12, 13, 14)]
            wait_until(lambda: running(served)["waiting"] == 3)
        assert first.result().status_code == 200
        assert [each.result().status_code for each in others] == [200, 500, 200]
        assert others[1].result().json()["error"]["code"] == "model_failed"
        handle.remove()
        assert post(served, prompt=[13]).status_code == 200


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
def test_server_that_is_stopped_finishes_what_runs_and_refuses_what_is_new(
    loaded: LoadedBundle, is_stream: bool
) -> None:
    with serving_bundle(loaded, Limits(batches=1)) as served, asking() as ask:
        with held(loaded) as passes:
            runs = ask(served, max_tokens=4, stream=is_stream)
            passes.wait_for_a_pass()
            served.server.request_stop()
            wait_until(lambda: httpx2.get(f"{served.url}/health").status_code == 503)
            refused = post(served)
        answer = runs.result()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
    assert answer.status_code == 200
    assert answer.text.count("[DONE]") == is_stream
    with pytest.raises(httpx2.ConnectError):
        post(served)


def test_answers_that_the_grace_is_too_short_for_are_ended_with_an_error(loaded: LoadedBundle) -> None:
    limits = Limits(batches=1, grace_seconds=0.1)
    with serving_bundle(loaded, limits) as served, asking() as ask, held(loaded) as passes:
        passes.allow(1)
        streamed = ask(served, stream=True)
        passes.wait_for_a_pass()
        passes.wait_for_a_pass()
        waits = ask(served, model=f"{NAME}/base")
        wait_until(lambda: running(served)["waiting"] == 1)
        served.server.request_stop()
        answer, ended = waits.result(), streamed.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
    assert '"code": "shutting_down"' in ended.text.splitlines()[-2]


def test_nothing_is_kept_of_a_request_that_ended(
    loaded: LoadedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: weakref.WeakSet[object] = weakref.WeakSet()
    emit = Row.emit

    def noted(row: Row, event: object) -> None:
        kept.add(row.events)
        emit(row, event)

    monkeypatch.setattr(Row, "emit", noted)
    with serving_bundle(loaded, Limits(batches=1)) as served:
        threads = threading.active_count()
        for stream in (False, True):
            for _ in range(3):
                assert post(served, stream=stream).status_code == 200
        wait_until(lambda: running(served) == {"waiting": 0, "running": 0})
        assert threading.active_count() <= threads + 3
        # What a thread and an event loop did last is theirs until they do the next.
        wait_until(lambda: gc.collect() is not None and len(kept) <= 1)
