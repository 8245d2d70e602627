"""A bundle whose decisions are made by the router and whose members are models of engines."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from meteora_registry.runtime.decider import RequestDecider, open_decider
from meteora_registry.serving.engines import Engines, EngineTimes
from meteora_registry.serving.limits import Limits
from meteora_registry.serving.metrics import Metrics
from meteora_registry.serving.names import ModelNames
from meteora_registry.serving.routed import RoutedBackend
from support.bundles import write_bundle
from support.engines import BASE, FakeEngine, fake_engines
from support.models import LOADS_UNFITTED, make_adapter, tiny_llama
from support.patience import PATIENCE_SECONDS
from support.serving import Serving, metric, serving
from support.task_data import TEMPLATE, save_text_base

MEMBERS = ("legal", "medical")
NAME = "tiny"
TURNS = [{"role": "user", "content": "w1 w2 w3"}]
SELDOM = EngineTimes(between_checks=600, least_pause=0.01, most_pause=0.05)

pytestmark = LOADS_UNFITTED


@pytest.fixture(scope="module")
def decider(tmp_path_factory: pytest.TempPathFactory) -> RequestDecider:
    return make_decider(tmp_path_factory.mktemp("routed"))


@pytest.fixture(scope="module")
def unsure(tmp_path_factory: pytest.TempPathFactory) -> RequestDecider:
    """Return what leaves every request to the base."""
    return make_decider(tmp_path_factory.mktemp("unsure"), abstain=1.0)


def make_decider(folder: Path, **options: Any) -> RequestDecider:
    members = {
        name: make_adapter(tiny_llama, folder / name, seed=seed, r=4, target_modules=["q_proj", "v_proj"])
        for seed, name in enumerate(MEMBERS)
    }
    bundle = write_bundle(folder / NAME, members, top_k=1, scope="prompt", **options)
    return open_decider(bundle, save_text_base(folder / "base", pad_token="<unk>", chat_template=TEMPLATE))


@contextmanager
def routed(
    decider: RequestDecider, engines: list[FakeEngine], limits: Limits | None = None, **options: Any
) -> Iterator[Serving]:
    """Serve in front of these engines within the block."""
    limits, metrics = limits or Limits(), Metrics()
    found = Engines(
        [each.url for each in engines], MEMBERS, **{"max_in_flight": 8, "times": SELDOM} | options
    )
    backend = RoutedBackend(decider, ModelNames(NAME, MEMBERS), found, limits, metrics)
    with serving(backend, limits, metrics) as served:
        yield served


@contextmanager
def client_of(served: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def engines() -> Iterator[list[FakeEngine]]:
    with fake_engines(1) as found:
        yield found


@pytest.fixture
def served(decider: RequestDecider, engines: list[FakeEngine]) -> Iterator[Serving]:
    with routed(decider, engines) as found:
        yield found


def prompts_of_both(decider: RequestDecider) -> dict[str, str]:
    """Return a prompt that each member answers."""
    words = [f"w{number} w{number * 7 % 60} w{number * 3 % 60}" for number in range(40)]
    decisions = decider.decide([decider.encode(text) for text in words])
    found = {decision.members[0]: text for text, decision in zip(words, decisions, strict=True)}
    assert set(found) == set(MEMBERS)
    return found


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "in-pieces"])
def test_completion_is_answered_by_the_member_that_is_decided(
    decider: RequestDecider, served: Serving, engines: list[FakeEngine], is_stream: bool
) -> None:
    for member, prompt in prompts_of_both(decider).items():
        ids = decider.encode(prompt)
        with client_of(served) as client:
            raw = client.completions.with_raw_response.create(
                model=NAME, prompt=prompt, max_tokens=4, stream=is_stream
            )
            answer = raw.parse()
            first, *rest = list(answer) if is_stream else [answer]
        assert first.model == NAME
        assert first.meteora["member"] == member
        [decided] = decider.decide([ids])
        assert first.meteora["confidence"] == pytest.approx(decided.confidence)
        assert first.meteora["decisions"] == [
            {"members": [member], "weights": [1.0], "confidence": pytest.approx(decided.confidence)}
        ]
        assert raw.headers["x-meteora-member"] == member
        assert "".join(chunk.choices[0].text for chunk in (first, *rest)) == " ".join(map(str, ids))
        assert [chunk.model for chunk in rest] == [NAME] * len(rest)
        body = engines[0].bodies[-1]
        assert (body["model"], body["prompt"], body["max_tokens"]) == (member, [ids], 4)


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "in-pieces"])
@pytest.mark.parametrize(
    ("model", "expected", "member"),
    [
        (f"{NAME}/legal", "legal", "legal"),
        (f"{NAME}/medical", "medical", "medical"),
        (f"{NAME}/base", BASE, None),
    ],
)
def test_conversation_is_answered_by_what_it_names(
    served: Serving, engines: list[FakeEngine], model: str, expected: str, member: str | None, is_stream: bool
) -> None:
    with client_of(served) as client:
        answer = client.chat.completions.create(model=model, messages=TURNS, stream=is_stream)
        first, *rest = list(answer) if is_stream else [answer]
    found = [first, *rest]
    texts = [
        (each.choices[0].delta if is_stream else each.choices[0].message).content or "" for each in found
    ]
    assert "".join(texts) == "w1 w2 w3"
    assert first.meteora == {
        "member": member,
        "confidence": None,
        "forced": True,
        "scope": "prompt",
        "decisions": [],
    }
    assert found[-1].choices[0].finish_reason == "stop"
    body = engines[0].bodies[0]
    assert (body["model"], body["messages"]) == (expected, TURNS)
    # The template writes `<user> w1 w2 w3 <assistant>`.
    assert body["max_tokens"] == 64 - 5


def test_conversation_is_decided_as_the_template_writes_it(
    decider: RequestDecider, served: Serving, engines: list[FakeEngine]
) -> None:
    with client_of(served) as client:
        found = client.chat.completions.create(model=NAME, messages=TURNS)
    [expected] = decider.decide([decider.encode("<user> w1 w2 w3 <assistant>")])
    assert (found.meteora["member"],) == expected.members
    assert found.meteora["confidence"] == pytest.approx(expected.confidence)
    assert engines[0].bodies[0]["model"] == expected.members[0]


def test_request_that_no_member_is_sure_of_goes_to_the_base(
    unsure: RequestDecider, engines: list[FakeEngine]
) -> None:
    with routed(unsure, engines) as served, client_of(served) as client:
        found = client.completions.create(model=NAME, prompt="w1 w2")
        metrics = httpx2.get(f"{served.url}/metrics").text
    assert (found.meteora["member"], found.meteora["forced"]) == (None, False)
    assert engines[0].bodies[0]["model"] == BASE
    assert "meteora_abstentions_total 1.0" in metrics


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "in-pieces"])
def test_prompts_of_one_request_may_have_different_members(
    decider: RequestDecider, served: Serving, engines: list[FakeEngine], is_stream: bool
) -> None:
    prompts = prompts_of_both(decider)
    with client_of(served) as client:
        answer = client.completions.create(
            model=NAME, prompt=list(prompts.values()), max_tokens=4, stream=is_stream
        )
        chunks = list(answer) if is_stream else [answer]
    texts = dict.fromkeys(range(2), "")
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert list(texts.values()) == [" ".join(map(str, decider.encode(each))) for each in prompts.values()]
    assert [each["member"] for each in chunks[0].meteora] == list(prompts)
    assert {body["model"] for body in engines[0].bodies} == set(MEMBERS)
    if not is_stream:
        assert chunks[0].usage.total_tokens == 16


def test_usage_is_streamed_to_who_asks_for_it_alone(served: Serving) -> None:
    with client_of(served) as client:
        options = {"model": NAME, "prompt": "w1", "stream": True}
        asked = list(client.completions.create(**options, stream_options={"include_usage": True}))
        silent = list(client.completions.create(**options))
    assert asked[-1].usage.total_tokens == 8
    assert [each.usage for each in silent] == [None] * len(silent)
    metrics = httpx2.get(f"{served.url}/metrics").text
    assert "meteora_prompt_tokens_total 6.0" in metrics
    assert "meteora_answer_tokens_total 10.0" in metrics


def test_fields_of_a_request_reach_the_engine_and_what_is_not_stated_is_the_interfaces_default(
    served: Serving, engines: list[FakeEngine]
) -> None:
    with client_of(served) as client:
        client.chat.completions.create(model=f"{NAME}/legal", messages=TURNS, user="a", n=1)
        client.chat.completions.create(
            model=f"{NAME}/legal", messages=TURNS, temperature=0, top_p=0.5, seed=7, stop=["w9"], max_tokens=3
        )
    common = {"model": "legal", "messages": TURNS}
    assert engines[0].bodies == [
        common | {"temperature": 1.0, "top_p": 1.0, "max_tokens": 59},
        common | {"temperature": 0.0, "top_p": 0.5, "seed": 7, "stop": ["w9"], "max_tokens": 3},
    ]


def test_probabilities_of_a_prompt_are_asked_of_the_engine(
    decider: RequestDecider, served: Serving, engines: list[FakeEngine]
) -> None:
    asked = {"echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    found = httpx2.post(f"{served.url}/v1/completions", json={"model": NAME, "prompt": "w1 w2"} | asked)
    ids = decider.encode("w1 w2")
    assert found.json()["choices"][0]["logprobs"] == {"tokens": [str(each) for each in ids]}
    assert {name: engines[0].bodies[0][name] for name in asked} == asked


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": ""}, "prompt", None),
        ({"prompt": [64]}, "prompt", None),
        ({"prompt": "w1 " * 60}, "prompt", "context_length_exceeded"),
        ({"prompt": "w1", "max_tokens": 64}, "prompt", "context_length_exceeded"),
    ],
    ids=["empty", "unknown-token", "too-long", "answer-too-long"],
)
def test_prompt_that_the_base_cannot_take_is_refused_before_any_engine_sees_it(
    served: Serving, engines: list[FakeEngine], fields: dict[str, Any], param: str, code: str | None
) -> None:
    found = httpx2.post(f"{served.url}/v1/completions", json={"model": NAME} | fields)
    assert found.status_code == 400
    assert (found.json()["error"]["param"], found.json()["error"]["code"]) == (param, code)
    assert engines[0].bodies == []


def test_base_without_a_template_refuses_conversations(engines: list[FakeEngine], tmp_path: Path) -> None:
    decider = make_decider(tmp_path)
    decider.tokenizer.chat_template = None
    with routed(decider, engines) as served:
        found = httpx2.post(f"{served.url}/v1/chat/completions", json={"model": NAME, "messages": TURNS})
    assert (found.status_code, found.json()["error"]["code"]) == (400, "chat_template")


@pytest.mark.parametrize(
    ("prompt", "status", "code"),
    [
        ("refuse", 400, "engine_refused"),
        ("fail", 502, "engine_lost"),
        ("break", 502, "engine_lost"),
        ("full", 429, "engine_refused"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "in-pieces"])
def test_failure_of_an_engine_has_the_form_of_the_interface(
    served: Serving, prompt: str, status: int, code: str, is_stream: bool
) -> None:
    body = {"model": f"{NAME}/legal", "messages": [{"role": "user", "content": prompt}], "stream": is_stream}
    found = httpx2.post(f"{served.url}/v1/chat/completions", json=body)
    assert (found.status_code, found.json()["error"]["code"]) == (status, code)
    assert ("retry-after" in found.headers) == (status in (429, 502))


def test_count_that_an_engine_cannot_have_made_is_none(served: Serving) -> None:
    body = {"model": f"{NAME}/legal", "messages": [{"role": "user", "content": "negative"}]}
    found = httpx2.post(f"{served.url}/v1/chat/completions", json=body, timeout=PATIENCE_SECONDS)
    assert found.status_code == 200, found.text
    assert found.json()["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def test_stream_of_a_dying_engine_ends_with_the_error_as_an_event(decider: RequestDecider) -> None:
    turns = [{"role": "user", "content": "hold-stream"}]
    with fake_engines(2) as engines, routed(decider, engines) as served, client_of(served) as client:
        chunks = client.chat.completions.create(model=f"{NAME}/legal", messages=turns, stream=True)
        engines[0].waits.acquire()
        engines[0].kill()
        with pytest.raises(openai.APIError, match="was lost while it answered") as found:
            for _ in chunks:
                pass
        assert found.value.code == "engine_lost"
        next_turns = [{"role": "user", "content": "w1"}]
        assert client.chat.completions.create(model=f"{NAME}/legal", messages=next_turns)
        health = httpx2.get(f"{served.url}/health").json()
    assert [each["is_up"] for each in health["engines"].values()] == [False, True]


def test_metrics_count_what_engines_have_and_the_time_to_the_first_token(
    served: Serving, engines: list[FakeEngine]
) -> None:
    body = {"model": f"{NAME}/legal", "messages": [{"role": "user", "content": "hold-stream"}]}
    with httpx2.stream("POST", f"{served.url}/v1/chat/completions", json=body | {"stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        engines[0].waits.acquire()
        assert metric(served, "meteora_running") == 1
        engines[0].go_on()
        assert "data: [DONE]" in list(lines)
    assert metric(served, "meteora_running") == metric(served, "meteora_waiting") == 0
    assert metric(served, "meteora_first_token_seconds_count") == 1


def test_client_that_leaves_ends_its_request_in_the_engine(
    served: Serving, engines: list[FakeEngine]
) -> None:
    body = {
        "model": f"{NAME}/legal",
        "messages": [{"role": "user", "content": "hold-stream"}],
        "stream": True,
    }
    with httpx2.stream("POST", f"{served.url}/v1/chat/completions", json=body) as response:
        next(response.iter_lines())
        engines[0].waits.acquire()
    engines[0].ended.acquire()


def test_metrics_show_each_engine(decider: RequestDecider) -> None:
    with fake_engines(2) as engines:
        engines[1].kill()
        with routed(decider, engines) as served:
            found = httpx2.get(f"{served.url}/metrics").text
    for engine, is_up in zip(engines, (1.0, 0.0), strict=True):
        assert f'meteora_engine_up{{engine="{engine.url}"}} {is_up}' in found
        assert f'meteora_engine_requests{{engine="{engine.url}"}} 0.0' in found


def test_many_requests_are_all_answered_or_told_why_when_an_engine_dies_among_them(
    decider: RequestDecider,
) -> None:
    """A hundred at a time, of all models, every tenth of which is left, and one of three engines ends."""
    models = (NAME, *(f"{NAME}/{member}" for member in MEMBERS), f"{NAME}/base")

    async def ask(client: httpx2.AsyncClient, place: int) -> int | None:
        prompt = "hold-stream" if place % 20 == 0 else f"w{place % 60} " * (place % 30 + 1)
        messages = [{"role": "user", "content": prompt}]
        body = {"model": models[place % 4], "messages": messages, "stream": place % 2 == 0}
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if place % 10 == 0:
                return None
            text = (await response.aread()).decode()
        assert response.status_code == 200 or "error" in json.loads(text), text
        assert not body["stream"] or response.status_code != 200 or text.rstrip().endswith(("[DONE]", "}}"))
        return response.status_code

    async def test(url: str) -> Counter[int | None]:
        bounds = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(base_url=url, timeout=120, limits=bounds) as client:
            asked = [asyncio.create_task(ask(client, place)) for place in range(100)]
            await asyncio.to_thread(engines[0].waits.acquire)
            await asyncio.to_thread(engines[0].kill)
            return Counter(await asyncio.gather(*asked))

    with fake_engines(3) as engines, routed(decider, engines, max_in_flight=100) as served:
        found = asyncio.run(test(served.url))
        health = httpx2.get(f"{served.url}/health").json()["engines"]
        later = httpx2.post(f"{served.url}/v1/completions", json={"model": NAME, "prompt": "w1"})
    assert found[None] == 10
    assert found[200] + found[502] == 90
    # At most the streams of the engine that ended.
    assert found[200] > 50
    assert [each["is_up"] for each in health.values()] == [False, True, True]
    assert later.status_code == 200


def test_server_without_an_engine_says_so(decider: RequestDecider, engines: list[FakeEngine]) -> None:
    engines[0].kill()
    with routed(decider, engines) as served:
        health = httpx2.get(f"{served.url}/health")
        found = httpx2.post(f"{served.url}/v1/completions", json={"model": NAME, "prompt": "w1"})
    assert (health.status_code, health.json()["status"]) == (503, "unavailable")
    assert (found.status_code, found.json()["error"]["code"]) == (503, "no_engine")
    assert "retry-after" in found.headers


def test_server_that_stops_ends_what_an_engine_does_not_finish(
    decider: RequestDecider, engines: list[FakeEngine]
) -> None:
    turns = [{"role": "user", "content": "hold-stream"}]
    with routed(decider, engines, Limits(grace_seconds=0.1)) as served, client_of(served) as client:
        chunks = client.chat.completions.create(model=f"{NAME}/legal", messages=turns, stream=True)
        engines[0].waits.acquire()
        served.server.request_stop()
        with pytest.raises(openai.APIError, match="the server is shutting down"):
            for _ in chunks:
                pass
