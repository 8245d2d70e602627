"""Clients that people use, against a real server: OpenAI's package, LangChain's, and curl."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from meteora_registry.runtime import LoadedBundle
from meteora_registry.runtime.chat_prompt import chat_prompt
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT
from support.serving import MEMBERS, NAME, Serving

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]
TURNS: list[Any] = [{"role": "system", "content": "w9"}, {"role": "user", "content": "w1 w2 w3"}]
MODELS = [NAME, *(f"{NAME}/{member}" for member in MEMBERS), f"{NAME}/base"]


@pytest.fixture
def client(served: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def expected(loaded: LoadedBundle, prompt: str, model: str, tokens: int) -> str:
    """Return what the bundle itself answers, or the member or base that a model names."""
    member = model.partition("/")[2]
    if not member:
        return loaded.generate(prompt, max_new_tokens=tokens)
    return loaded.generate(prompt, max_new_tokens=tokens, member=None if member == "base" else member)


@pytest.mark.parametrize("model", MODELS)
def test_answer_is_the_greedy_one_of_the_loaded_bundle(
    loaded: LoadedBundle, client: openai.OpenAI, model: str
) -> None:
    found = client.chat.completions.create(model=model, messages=TURNS, temperature=0, max_tokens=8)
    prompt = chat_prompt(loaded.tokenizer, TURNS)
    assert found.choices[0].message.content == expected(loaded, prompt, model, 8)
    assert found.choices[0].finish_reason == "length"
    assert (found.model, found.object) == (model, "chat.completion")
    assert found.usage is not None
    assert found.usage.completion_tokens == 8
    assert found.usage.prompt_tokens == len(loaded.tokenizer(prompt)["input_ids"])


@pytest.mark.parametrize("model", MODELS)
def test_stream_joins_to_the_same_answer_and_begins_with_the_decision(
    loaded: LoadedBundle, client: openai.OpenAI, model: str
) -> None:
    options: dict[str, Any] = {"model": model, "messages": TURNS, "temperature": 0, "max_tokens": 8}
    whole = client.chat.completions.with_raw_response.create(**options)
    streamed = client.chat.completions.with_raw_response.create(
        **options, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(streamed.parse())
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.parse().choices[0].message.content
    assert sum(map(bool, pieces)) == 8, "each word comes by itself"
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "length"
    assert chunks[-1].usage == whole.parse().usage
    assert chunks[0].model_extra["meteora"] == whole.parse().model_extra["meteora"]
    assert "meteora" not in chunks[1].model_extra
    for header in ("x-meteora-member", "x-meteora-confidence"):
        assert streamed.headers[header] == whole.headers[header]


def test_routed_answer_states_the_decision_of_the_loaded_bundle(
    loaded: LoadedBundle, client: openai.OpenAI
) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=NAME, messages=TURNS, temperature=0, max_tokens=2
    )
    decision = loaded.answer(chat_prompt(loaded.tokenizer, TURNS), max_new_tokens=2).decisions[0]
    stated = raw.parse().model_extra["meteora"]
    assert stated["member"] == decision.members[0] == raw.headers["x-meteora-member"]
    assert stated["confidence"] == pytest.approx(decision.confidence)
    assert (stated["forced"], stated["scope"]) == (False, "prompt")
    assert [each["members"] for each in stated["decisions"]] == [list(decision.members)]
    assert float(raw.headers["x-meteora-confidence"]) == pytest.approx(decision.confidence, abs=1e-4)


@pytest.mark.parametrize(("model", "member"), [(f"{NAME}/rank8", "rank8"), (f"{NAME}/base", None)])
def test_forced_answer_states_that_nothing_was_decided(
    client: openai.OpenAI, model: str, member: str | None
) -> None:
    raw = client.chat.completions.with_raw_response.create(model=model, messages=TURNS, max_tokens=1)
    assert raw.parse().model_extra["meteora"] == {
        "member": member,
        "confidence": None,
        "forced": True,
        "scope": "prompt",
        "decisions": [],
    }
    assert raw.headers["x-meteora-member"] == (member or "base")


def test_several_prompts_are_answered_as_each_alone(loaded: LoadedBundle, client: openai.OpenAI) -> None:
    prompts = ["w1 w2 w3 w4 w5", "w7", "w9 w11 w13"]
    tokens = [loaded.tokenizer(prompt)["input_ids"] for prompt in prompts]
    for given in (prompts, tokens):
        found = client.completions.create(model=NAME, prompt=given, temperature=0, max_tokens=6)
        assert [choice.text for choice in found.choices] == loaded.generate(prompts, max_new_tokens=6)
        assert [choice.index for choice in found.choices] == [0, 1, 2]
        members = [each["member"] for each in found.model_extra["meteora"]]
        assert members == [loaded.answer(each, max_new_tokens=1).decisions[0].members[0] for each in prompts]
    streamed = ["", "", ""]
    for chunk in client.completions.create(
        model=NAME, prompt=prompts, temperature=0, max_tokens=6, stream=True
    ):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == loaded.generate(prompts, max_new_tokens=6)


def test_async_client_gets_many_answers_at_once(served: Serving, loaded: LoadedBundle) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            calls = [
                client.completions.create(model=model, prompt="w1 w2", temperature=0, max_tokens=tokens)
                for model in MODELS
                for tokens in (2, 9)
            ]
            return [each.choices[0].text for each in await asyncio.gather(*calls)]

    assert asyncio.run(ask()) == [
        expected(loaded, "w1 w2", model, tokens) for model in MODELS for tokens in (2, 9)
    ]


def test_models_are_listed_and_found_by_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == MODELS
    assert client.models.retrieve(f"{NAME}/rank8").id == f"{NAME}/rank8"
    with pytest.raises(openai.NotFoundError, match="there is no model `other`, expected one of `tiny`"):
        client.models.retrieve("other")


def test_langchain_asks_and_streams(served: Serving, loaded: LoadedBundle) -> None:
    # Imported here, because that takes two seconds in every worker that collects this file.
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        base_url=f"{served.url}/v1", api_key="none", model=NAME, temperature=0, max_tokens=6, max_retries=0
    )
    turns = [("system", "w9"), ("human", "w1 w2 w3")]
    prompt = chat_prompt(loaded.tokenizer, TURNS)
    assert model.invoke(turns).content == loaded.generate(prompt, max_new_tokens=6)
    assert "".join(str(piece.content) for piece in model.stream(turns)) == model.invoke(turns).content


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_asks_and_streams(served: Serving, loaded: LoadedBundle) -> None:
    def curl(**body: object) -> str:
        asked = {"model": NAME, "prompt": "w1 w2", "temperature": 0, "max_tokens": 4} | body
        command = [
            "curl",
            "--silent",
            "--no-buffer",
            f"{served.url}/v1/completions",
            "--json",
            json.dumps(asked),
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    answer = loaded.generate("w1 w2", max_new_tokens=4)
    assert json.loads(curl())["choices"][0]["text"] == answer
    events = [line.removeprefix("data: ") for line in curl(stream=True).splitlines() if line]
    assert events.pop() == "[DONE]"
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == answer
