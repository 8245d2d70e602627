"""The server with the client that most people have: OpenAI's own package."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from meteora_registry.runtime.chat_prompt import chat_prompt
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT
from support.serving import MEMBERS, NAME, Serving, load_served, serving_bundle

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]
TURNS = [{"role": "user", "content": "w1 w2 w3"}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving_bundle(load_served(tmp_path_factory.mktemp("served"))) as found:
        yield found


@pytest.fixture
def client(served: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.mark.parametrize("model", [NAME, *(f"{NAME}/{member}" for member in MEMBERS), f"{NAME}/base"])
def test_answer_is_the_greedy_one_of_the_loaded_bundle(
    served: Serving, client: openai.OpenAI, model: str
) -> None:
    found = client.chat.completions.create(model=model, messages=TURNS, temperature=0, max_tokens=8)
    prompt = chat_prompt(served.loaded.tokenizer, TURNS)
    member = model.partition("/")[2]
    choice = {} if not member else {"member": None if member == "base" else member}
    assert found.choices[0].message.content == served.loaded.generate(prompt, max_new_tokens=8, **choice)
    assert found.model == model
