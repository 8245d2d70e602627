"""The text that each token adds, with a tokenizer of bytes: characters of several tokens, and of none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meteora_registry.runtime.tracing.recorder import token_texts
from support.byte_tokens import byte_tokenizer
from support.examples import examples

# The space and `a` behind it are one token.
TOKENIZER = byte_tokenizer(("\u0120", "a"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a a", ["a", " a"]),
        ("\u00e9!", ["", "\u00e9", "!"]),
        ("\u65e5\n", ["", "", "\u65e5", "\n"]),
        ("\U0001f469", ["", "", "", "\U0001f469"]),
    ],
    ids=["space-before-a-word", "two-tokens", "three-tokens", "four-tokens"],
)
def test_character_goes_to_the_last_of_its_tokens(text: str, expected: list[str]) -> None:
    assert token_texts(TOKENIZER, TOKENIZER(text)["input_ids"]) == expected


@examples(60)
@given(st.text(max_size=20))
def test_texts_together_are_the_whole_text(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    texts = token_texts(TOKENIZER, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text


def test_bytes_that_are_no_character_do_not_hold_back_what_follows() -> None:
    lone = TOKENIZER("\u65e5")["input_ids"][1]
    texts = token_texts(TOKENIZER, [lone] * 6 + TOKENIZER("a")["input_ids"])
    assert texts[-1].endswith("a")
    assert max(map(len, texts)) <= 4
