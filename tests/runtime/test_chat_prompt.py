"""The prompt of a conversation, as the base's own chat template writes it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from meteora_registry.runtime.chat_prompt import ChatPrompts, chat_prompt
from meteora_registry.runtime.fitting.chat_template import ChatTemplate
from meteora_registry.schemas.errors import UsageError
from support.task_data import TEMPLATE, tiny_tokenizer

TURNS = [{"role": "system", "content": "w9"}, {"role": "user", "content": "w1"}]
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_prompt_is_the_templates_with_the_cue_to_answer() -> None:
    assert chat_prompt(tiny_tokenizer(chat_template=TEMPLATE), TURNS) == "<system> w9 <user> w1 <assistant> "


def test_encoded_prompt_has_the_token_of_the_beginning_once() -> None:
    tokenizer = tiny_tokenizer(chat_template="{{ bos_token }} " + TEMPLATE, bos_token="<s>")
    tokenizer.add_bos_token = True
    prompt = chat_prompt(tokenizer, TURNS)
    expected = tokenizer.apply_chat_template(TURNS, add_generation_prompt=True)["input_ids"]
    assert tokenizer(prompt)["input_ids"] == expected


def test_many_threads_write_their_own_conversations() -> None:
    def turns(number: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"w{number}"}]

    with ChatPrompts(tiny_tokenizer(chat_template=TEMPLATE)) as prompts, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: prompts.write(turns(number)), range(20)))
    assert found == [f"<user> w{number} <assistant> " for number in range(20)]


def test_template_that_was_stopped_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChatTemplate.__init__, "__kwdefaults__", {"max_seconds": 0.1})
    template = "{% if messages[0].content == 'w1' %}" + ENDLESS + "{% endif %}w2"
    with ChatPrompts(tiny_tokenizer(chat_template=template)) as prompts:
        with pytest.raises(
            UsageError, match=r"^the conversation is refused .* it was stopped after 0.1 seconds"
        ):
            prompts.write(TURNS[1:])
        assert prompts.write(TURNS) == "w2"


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        pytest.param([], "the conversation has no turns", id="none"),
        pytest.param(
            [{"role": "tool", "content": "w1"}],
            "turn 1 has the role `tool`, expected one of `system`, `user`, `assistant`",
            id="role",
        ),
        pytest.param([TURNS[0], {"role": "user"}], "turn 2 has no text in `content`", id="content"),
    ],
)
def test_malformed_conversation_is_refused(turns: list[dict[str, str]], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        chat_prompt(tiny_tokenizer(chat_template=TEMPLATE), turns)
    assert str(caught.value) == message


def test_base_without_a_template_is_refused() -> None:
    with pytest.raises(UsageError, match="the base's tokenizer has no chat template") as caught:
        chat_prompt(tiny_tokenizer(), TURNS)
    assert caught.value.hint == "give the prompt as one text"


@pytest.mark.parametrize(
    ("template", "reason"),
    [("{{ raise_exception('no system') }}", "no system"), ("{{ 1 / 0 }}", "division by zero")],
    ids=["refuses", "fails"],
)
def test_template_that_refuses_is_quoted(template: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        chat_prompt(tiny_tokenizer(chat_template=template), TURNS)
    assert str(caught.value) == f"the conversation is refused by the base's chat template: {reason}"
