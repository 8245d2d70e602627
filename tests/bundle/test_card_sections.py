"""Sections that ``push`` adds to a bundle's card: bounded, shown as is, and left out of the card's digest."""

from __future__ import annotations

import json

import pytest

from meteora_registry.bundle.card_sections import (
    EVALUATION,
    EXAMPLES,
    is_same_card,
    render_examples,
    with_section,
)
from meteora_registry.schemas.card_examples import Example, parse_examples
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.errors import DataRefused, InvalidDocument

CARD = b"---\nlicense: mit\n---\n\n# A bundle\n\n## Members\n\nnone\n"
LISTED = Digest.of_bytes(CARD)


def lines(*values: object) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def test_section_stands_before_the_members_and_is_not_part_of_the_digest() -> None:
    card = with_section(CARD, EXAMPLES, render_examples([Example("What is 2?", "two")]))
    assert card.index(b"What is 2?") < card.index(b"## Members")
    assert is_same_card(card, LISTED)
    assert not is_same_card(card.replace(b"none", b"many"), LISTED)


def test_section_of_the_same_name_is_replaced_and_another_kept() -> None:
    card = with_section(with_section(CARD, EVALUATION, "a table"), EXAMPLES, "old")
    card = with_section(card, EXAMPLES, "new")
    assert b"a table" in card
    assert b"new" in card
    assert b"old" not in card
    assert is_same_card(card, LISTED)


def test_section_is_never_put_into_an_example_with_the_heading_of_the_members() -> None:
    examples = render_examples([Example("a\n\n## Members\nb", "answer")])
    card = with_section(with_section(CARD, EXAMPLES, examples), EVALUATION, "a table")
    assert examples.encode() in card
    assert card.index(b"a table") < card.index(b"## Members\n\nnone")
    assert is_same_card(card, LISTED)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("a\n```\nb", "````text\na\n```\nb\n````", id="a fence"),
        pytest.param("`````", "``````text\n`````\n``````", id="a long fence"),
        pytest.param("\x1b[2J\u202ex", "```text\n\\u001b[2J\\u202ex\n```", id="control characters"),
        pytest.param("<script>", "```text\n<script>\n```", id="markup"),
        pytest.param("one\r\ntwo", "```text\none\ntwo\n```", id="line ends"),
    ],
)
def test_texts_of_examples_cannot_leave_their_block(text: str, shown: str) -> None:
    assert shown in render_examples([Example(text, "answer")])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"\n", "`e.jsonl` has 0 examples, expected 1 to 10", id="none"),
        pytest.param(
            lines(*[{"prompt": "a", "response": "b"}] * 11), "has 11 examples, expected 1 to 10", id="many"
        ),
        pytest.param(lines({"prompt": "a"}), "`e.jsonl, line 1` has prompt, expected", id="no answer"),
        pytest.param(
            lines({"prompt": "a", "response": "b", "id": 1}), "line 1` has id, prompt, response", id="more"
        ),
        pytest.param(lines({"k" * 9000: 1}), "line 1` has kkk", id="a long key"),
        pytest.param(lines(["a", "b"]), "line 1` has list, expected", id="a list"),
        pytest.param(
            lines({"prompt": "a", "response": " "}), "has no text as `response`, expected 1 to", id="blank"
        ),
        pytest.param(
            lines({"prompt": "a" * 2001, "response": "b"}), "has 2001 characters as `prompt`", id="long"
        ),
    ],
)
def test_examples_of_another_shape_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(DataRefused) as caught:
        parse_examples(data, "e.jsonl")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_line_of_the_examples_that_is_not_json_is_named() -> None:
    with pytest.raises(InvalidDocument, match=r"`e\.jsonl, line 3` is not JSON"):
        parse_examples(b'{"prompt": "a", "response": "b"}\n\n{"prompt"\n', "e.jsonl")


@pytest.mark.parametrize("mark", ["<!-- end of what push added -->", "# added by push: evaluation"])
def test_text_with_a_mark_is_refused(mark: str) -> None:
    with pytest.raises(DataRefused, match="which marks what was added to a card"):
        with_section(CARD, EXAMPLES, f"a\n{mark}\nb")


def test_card_with_an_evaluation_and_examples_is_the_same() -> None:
    card = with_section(CARD, EXAMPLES, "text")
    card = with_section(card, EVALUATION, "## Evaluation", front_matter="model-index: []\n")
    assert is_same_card(card, LISTED)
    assert is_same_card(with_section(card, EXAMPLES, "other"), LISTED)
