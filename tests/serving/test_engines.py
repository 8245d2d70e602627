"""Engines behind a router: which one gets a request, and what becomes of it when one of them is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from meteora_registry.schemas.errors import UsageError
from meteora_registry.serving.engines import (
    Engine,
    EngineLost,
    Engines,
    EngineStream,
    EngineTimes,
    read_engine_url,
)
from meteora_registry.serving.errors import ApiError
from support.engines import BASE, MEMBERS, FakeEngine, fake_engines

QUICK = EngineTimes(between_checks=0.05, least_pause=0.01, most_pause=0.05)
# Checks that come only when an engine is suspected.
SELDOM = EngineTimes(between_checks=600, least_pause=0.01, most_pause=0.05)
FAR = 1e9
COMPLETIONS = "/v1/completions"


@asynccontextmanager
async def started(
    servers: Sequence[FakeEngine], *, times: EngineTimes = QUICK, **options: Any
) -> AsyncIterator[Engines]:
    """Watch these engines within the block."""
    urls = [server.url for server in servers]
    engines = Engines(urls, MEMBERS, times=times, **{"max_in_flight": 8} | options)
    await engines.start()
    try:
        yield engines
    finally:
        await engines.close()


def asking(prompt: str, **more: Any) -> Callable[[Engine], Mapping[str, Any]]:
    """Return the body of a request to the first member."""
    return lambda engine: {"model": engine.name_of("legal"), "prompt": prompt} | more


async def text_of(engines: Engines, prompt: str) -> str:
    """Return the text of a whole answer."""
    answer = await engines.ask(COMPLETIONS, asking(prompt), deadline=FAR)
    return str(answer["choices"][0]["text"])


async def begin(engines: Engines, prompt: str) -> EngineStream:
    """Return an answer in pieces."""
    return await engines.stream(COMPLETIONS, asking(prompt, stream=True), deadline=FAR)


async def text_in(stream: EngineStream) -> str:
    """Return the text of a stream."""
    return "".join([piece["choices"][0]["text"] async for piece in stream.pieces()])


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so, which background tasks bring about."""
    while not is_so():
        await asyncio.sleep(0.01)


async def waiting_in(server: FakeEngine) -> None:
    """Wait until an engine holds a request back."""
    await asyncio.to_thread(server.waits.acquire)


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine."""
    asyncio.run(test())  # type: ignore[arg-type]


def test_answers_come_whole_and_in_pieces() -> None:
    async def test() -> None:
        async with started(servers) as engines:
            assert await text_of(engines, "a b") == "a b"
            assert await text_in(await begin(engines, "a b")) == "a b"
            assert [engine.in_flight for engine in engines.engines] == [0]

    with fake_engines(1) as servers:
        run(test)
    assert servers[0].bodies[0] == {"model": "legal", "prompt": "a b"}


def test_engine_states_its_base_and_its_context() -> None:
    async def test() -> None:
        async with started(servers) as engines:
            assert [(each.is_up, each.name_of(None), each.name_of("legal")) for each in engines.engines] == [
                (True, BASE, "legal")
            ]
            assert engines.context == 64

    with fake_engines(1) as servers:
        run(test)


def test_request_goes_to_the_engine_with_the_fewest() -> None:
    async def test() -> None:
        async with started(servers) as engines:
            held = [asyncio.create_task(text_of(engines, "hold")) for _ in range(3)]
            for place in (0, 1, 2):
                await waiting_in(servers[place])
            assert [engine.in_flight for engine in engines.engines] == [1, 1, 1]
            servers[1].go_on()
            await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
            await text_of(engines, "next")
            for server in servers:
                server.go_on()
            assert await asyncio.gather(*held) == ["hold"] * 3

    with fake_engines(3) as servers:
        run(test)
    assert [server.prompts for server in servers] == [["hold"], ["hold", "next"], ["hold"]]


def test_full_engines_refuse_and_say_when_to_come_again() -> None:
    async def test() -> None:
        async with started(servers, max_in_flight=1) as engines:
            held = asyncio.create_task(text_of(engines, "hold"))
            await waiting_in(servers[0])
            with pytest.raises(ApiError, match="every engine has 1 requests already") as found:
                await text_of(engines, "next")
            assert (found.value.status, found.value.retry_after) == (429, 1)
            servers[0].go_on()
            assert await held == "hold"
            assert await text_of(engines, "next") == "next"

    with fake_engines(1) as servers:
        run(test)


@pytest.mark.parametrize("prompt", ["break", "fail", "garbage", "half", "nan", "zipped", "301", "401", "404"])
@pytest.mark.parametrize("ask", [text_of, begin], ids=["whole", "in-pieces"])
def test_request_that_an_engine_fails_is_given_to_another_once(
    prompt: str, ask: Callable[[Engines, str], Awaitable[Any]]
) -> None:
    async def test() -> None:
        async with started(servers, times=SELDOM) as engines:
            with pytest.raises((EngineLost, ApiError)):
                await ask(engines, prompt)
            assert [engine.in_flight for engine in engines.engines] == [0, 0, 0]
            await until(lambda: len(engines.up) == 3)

    with fake_engines(3) as servers:
        run(test)
    assert sorted(len(server.bodies) for server in servers) == [0, 1, 1]


@pytest.mark.parametrize("ask", [text_of, begin], ids=["whole", "in-pieces"])
def test_engine_that_is_gone_is_left_out_and_its_request_answered_by_another(
    ask: Callable[[Engines, str], Awaitable[Any]],
) -> None:
    async def test() -> None:
        async with started(servers, times=SELDOM) as engines:
            servers[0].kill()
            found = await ask(engines, "a b")
            assert found == "a b" or await text_in(found) == "a b"
            assert engines.up == [engines.engines[1]]
            assert "connect" in str(engines.engines[0].fault)

    with fake_engines(2) as servers:
        run(test)
    assert (servers[0].prompts, servers[1].prompts) == ([], ["a b"])


def test_engine_that_comes_back_gets_requests_again() -> None:
    async def test() -> None:
        async with started(servers) as engines:
            servers[0].kill()
            await until(lambda: not engines.up)
            with pytest.raises(ApiError, match="no engine is ready: `http://127") as found:
                await text_of(engines, "a")
            assert (found.value.status, found.value.code, found.value.retry_after) == (503, "no_engine", 1)
            servers[0].start()
            await until(lambda: bool(engines.up))
            assert await text_of(engines, "a") == "a"

    with fake_engines(1) as servers:
        run(test)


def test_request_whose_engine_dies_is_answered_by_another() -> None:
    async def test() -> None:
        async with started(servers, times=SELDOM) as engines:
            held = asyncio.create_task(text_of(engines, "hold"))
            await waiting_in(servers[0])
            servers[0].kill()
            await waiting_in(servers[1])
            servers[1].go_on()
            assert await held == "hold"

    with fake_engines(2) as servers:
        run(test)


@pytest.mark.parametrize("prompt", ["hold-stream", "break-stream"])
def test_stream_whose_engine_dies_in_the_middle_ends_with_the_reason(prompt: str) -> None:
    async def test() -> None:
        async with started(servers, times=SELDOM) as engines:
            stream = await begin(engines, prompt)
            pieces = stream.pieces()
            assert (await anext(pieces))["choices"][0]["text"] == prompt
            if prompt == "hold-stream":
                await waiting_in(servers[0])
                servers[0].kill()
            with pytest.raises(EngineLost) as found:
                await anext(pieces)
            assert found.value.error.status == 502
            assert servers[0].url in found.value.error.message
            assert engines.engines[0].in_flight == 0

    with fake_engines(2) as servers:
        run(test)
    assert servers[1].bodies == []


def test_engine_that_answers_no_check_any_more_loses_its_requests() -> None:
    """An engine that hangs keeps its connections open."""

    async def test() -> None:
        async with started(servers, times=QUICK) as engines:
            stream = await begin(engines, "hold-stream")
            servers[0].is_healthy = False
            pieces = stream.pieces()
            await anext(pieces)
            with pytest.raises(EngineLost, match="`/health` answers with status 503"):
                await anext(pieces)

    with fake_engines(1) as servers:
        run(test)


def test_engine_whose_answers_cannot_be_unpacked_is_left_out_and_asked_again() -> None:
    async def test() -> None:
        async with started(servers) as engines:
            servers[0].is_odd = True
            await until(lambda: not engines.up)
            servers[0].is_odd = False
            await until(lambda: bool(engines.up))

    with fake_engines(1) as servers:
        run(test)


@pytest.mark.parametrize("ask", [text_of, begin], ids=["whole", "in-pieces"])
def test_request_that_runs_when_the_engines_are_closed_is_not_given_to_another(
    ask: Callable[[Engines, str], Awaitable[Any]],
) -> None:
    async def test() -> None:
        async with started(servers) as engines:
            held = asyncio.create_task(ask(engines, "hold"))
            await asyncio.wait([asyncio.create_task(waiting_in(each)) for each in servers[:1]])
            await engines.close()
            with pytest.raises(EngineLost):
                await held
            with pytest.raises(ApiError, match="shutting down"):
                await ask(engines, "a")

    with fake_engines(2) as servers:
        run(test)
    assert sum(len(server.bodies) for server in servers) == 1


def test_engine_without_a_member_is_left_out() -> None:
    async def test() -> None:
        async with started(servers) as engines:
            assert not engines.up
            assert engines.engines[0].fault == (
                "it has no model `medical`, of its 2 models the first are `org/base`, `legal`"
            )
            servers[0].members.append("medical")
            await until(lambda: bool(engines.up))

    with fake_engines(1, members=["legal"]) as servers:
        run(test)


def test_engines_key_is_sent_and_a_wrong_one_leaves_the_engine_out() -> None:
    async def test() -> None:
        async with started(servers, key="secret") as engines:
            assert await text_of(engines, "a") == "a"
        async with started(servers, key="other") as engines:
            assert engines.engines[0].fault == "`/v1/models` answers with status 401 and no list of models"

    with fake_engines(1, key="secret") as servers:
        run(test)


@pytest.mark.parametrize(
    ("prompt", "status", "message"),
    [
        ("refuse", 400, "the engine refuses the request: no such thing"),
        ("full", 429, "the engine refuses the request: too many"),
    ],
)
def test_refusal_of_an_engine_is_passed_on_and_not_tried_again(
    prompt: str, status: int, message: str
) -> None:
    async def test() -> None:
        async with started(servers) as engines:
            for ask in (text_of, begin):
                with pytest.raises(ApiError) as found:
                    await ask(engines, prompt)
                assert (found.value.status, found.value.message) == (status, message)
            assert len(engines.up) == 2

    with fake_engines(2) as servers:
        run(test)
    assert sum(len(server.bodies) for server in servers) == 2


def test_request_ends_at_its_deadline() -> None:
    async def test() -> None:
        async with started(servers) as engines:
            past = asyncio.get_running_loop().time()
            with pytest.raises(ApiError, match="took longer") as found:
                await engines.ask(COMPLETIONS, asking("hold"), deadline=past)
            assert found.value.status == 504
            assert engines.up

    with fake_engines(1) as servers:
        run(test)


def test_stream_that_is_left_ends_in_the_engine() -> None:
    async def test() -> None:
        async with started(servers) as engines:
            stream = await begin(engines, "hold-stream")
            await waiting_in(servers[0])
            await stream.close()
            await asyncio.to_thread(servers[0].ended.acquire)
            assert engines.engines[0].in_flight == 0

    with fake_engines(1) as servers:
        run(test)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://host:8000", "http://host:8000"),
        ("http://host:8000/v1/", "http://host:8000"),
        ("https://host/engines/a/v1", "https://host/engines/a"),
    ],
)
def test_engine_url_may_end_in_the_version(text: str, url: str) -> None:
    assert read_engine_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "host:8000",
        "",
        "http://",
        "ftp://host",
        "http://user:word@host",
        "http://host?key=a",
        "unix:/tmp/x",
    ],
)
def test_engine_url_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as found:
        read_engine_url(text)
    assert "word" not in str(found.value)


def test_engine_named_twice_is_one() -> None:
    engines = Engines(["http://a:1", "http://a:1/v1"], MEMBERS, max_in_flight=1)
    assert [engine.url for engine in engines.engines] == ["http://a:1"]


def test_no_engine_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match="there is no engine"):
        Engines([], MEMBERS, max_in_flight=1)
