"""Chat templates are programs from elsewhere: they answer, refuse, or are stopped."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from meteora_registry.runtime.fitting import chat_template
from meteora_registry.runtime.fitting.chat_template import MAX_PROMPT_CHARACTERS, ChatTemplate
from meteora_registry.runtime.fitting.task_data import read_task_data
from meteora_registry.schemas.errors import DataRefused
from support.task_data import TEMPLATE, tiny_tokenizer

TURNS = [{"role": "user", "content": "w1 ü \u2028 w2"}]
NESTED_RANGES = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def refusal(template: str, *, max_seconds: float = 10.0) -> str:
    with (
        ChatTemplate(tiny_tokenizer(chat_template=template), max_seconds=max_seconds) as opened,
        pytest.raises(DataRefused) as caught,
    ):
        opened.render(TURNS)
    return str(caught.value)


def test_chat_template_renders_what_the_tokenizer_itself_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    # In the process that a fit starts; the other tests fork theirs from a warm one.
    monkeypatch.setattr(chat_template, "subprocess", subprocess)
    tokenizer = tiny_tokenizer(chat_template="{{ bos_token }}" + TEMPLATE, bos_token="<s>")
    with ChatTemplate(tokenizer) as template:
        for turns in (TURNS, [*TURNS, {"role": "assistant", "content": "w3"}, *TURNS]):
            expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            assert template.render(turns) == expected


def test_template_within_its_own_block_starts_no_second_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    start = ChatTemplate._start
    monkeypatch.setattr(ChatTemplate, "_start", lambda self: started.append(self) or start(self))
    tokenizer, other = tiny_tokenizer(chat_template=TEMPLATE), tiny_tokenizer(chat_template=TEMPLATE)
    with ChatTemplate(tokenizer) as outer:
        for _ in range(2):
            with ChatTemplate(tokenizer) as inner:
                assert inner.render(TURNS)
        assert outer.render(TURNS)
        assert len(started) == 1
        with ChatTemplate(other) as inner:
            assert inner.render(TURNS)
        assert len(started) == 2
    with ChatTemplate(tokenizer) as after:
        assert after.render(TURNS)
    assert len(started) == 3


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(NESTED_RANGES, id="nested ranges"),
        pytest.param("{% set x = 9 ** (9 ** 9) %}", id="one operation that never returns"),
        pytest.param("{% macro m() %}" + NESTED_RANGES + "{% endmacro %}{{ m() }}", id="macro"),
    ],
)
def test_template_that_does_not_end_is_stopped(template: str) -> None:
    assert refusal(template, max_seconds=0.1) == (
        "is refused by the base's chat template: it was stopped after 0.1 seconds of computing"
    )


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        pytest.param("{{ ('x' * 999999999999) | length }}", "MemoryError", id="a terabyte"),
        pytest.param("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion", id="recursion"),
        pytest.param("{{ " + "(" * 5000 + ")" * 5000 + " }}", "recursion", id="nesting"),
        pytest.param("{{ messages[0].content.nothing.at_all }}", "has no attribute", id="undefined"),
        pytest.param("{% for %}", "Expected", id="syntax"),
        pytest.param("{{ 1 / 0 }}", "division by zero", id="arithmetic"),
        pytest.param("{{ ''.__class__.__mro__ }}", "unsafe", id="sandbox"),
        pytest.param(
            f"{{{{ 'x' * {MAX_PROMPT_CHARACTERS + 1} }}}}",
            f"it made more than {MAX_PROMPT_CHARACTERS} characters of the messages",
            id="too long",
        ),
    ],
)
def test_template_that_fails_is_refused_in_words(template: str, reason: str) -> None:
    found = refusal(template)
    assert found.startswith("is refused by the base's chat template: ")
    assert reason in found


def test_template_that_was_stopped_is_not_tried_again_for_each_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChatTemplate.__init__, "__kwdefaults__", {"max_seconds": 0.1})
    line = json.dumps({"messages": TURNS}) + "\n"
    (tmp_path / "legal.jsonl").write_text(line * 3)
    tokenizer = tiny_tokenizer(chat_template="{% set x = 9 ** (9 ** 9) %}")
    with pytest.raises(DataRefused) as caught:
        read_task_data(tmp_path, ["legal"], tokenizer=tokenizer, context_tokens=None)
    assert [problem.partition(" ")[0] for problem in caught.value.problems] == [
        "`legal.jsonl:1`",
        "`legal.jsonl:2`",
        "`legal.jsonl:3`",
    ]
    assert all("was stopped after 0.1 seconds" in problem for problem in caught.value.problems)


def test_tokenizer_with_several_templates_and_no_default_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"a": TEMPLATE, "b": TEMPLATE}
    with ChatTemplate(tokenizer) as template, pytest.raises(DataRefused, match="none of them `default`"):
        template.render(TURNS)
