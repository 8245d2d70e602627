"""The text of an answer in pieces: joined, that of decoding all tokens at once, up to a stop text."""

from __future__ import annotations

import random

import pytest
from transformers import PreTrainedTokenizerBase

from meteora_registry.runtime.answer_text import AnswerText
from support.byte_tokens import byte_tokenizer
from support.task_data import tiny_tokenizer


def pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int], *stops: str) -> list[str]:
    """Return the pieces of an answer, the last of them its end."""
    text = AnswerText(tokenizer, stops)
    found = []
    for token in ids:
        found.append(text.add(token))
        if text.is_stopped:
            break
    return [*found, text.end()]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("make", [tiny_tokenizer, byte_tokenizer], ids=["words", "bytes"])
def test_pieces_join_to_the_whole_text(make: type[PreTrainedTokenizerBase], seed: int) -> None:
    tokenizer = make(bos_token="<s>")
    generator = random.Random(seed)
    ids = [generator.randrange(len(tokenizer)) for _ in range(40)]
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


def test_character_of_several_tokens_comes_whole() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("aé😀b")["input_ids"]
    assert len(ids) == 8
    assert pieces(tokenizer, ids) == ["a", "", "é", "", "", "", "😀", "b", ""]


def test_bytes_that_never_become_a_character_come_at_the_end() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("a😀")["input_ids"][:-1]
    assert pieces(tokenizer, ids) == ["a", "", "", "", "\ufffd"]


def test_word_behind_a_special_token_keeps_its_space() -> None:
    tokenizer = tiny_tokenizer(bos_token="<s>")
    ids = tokenizer("w1 <s> w2")["input_ids"]
    assert pieces(tokenizer, ids) == ["w1", "", " w2", ""]


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        pytest.param(["cd"], ["a", "b", "", "", ""], id="of two tokens"),
        pytest.param(["ce"], ["a", "b", "", "cd", "e", ""], id="only its beginning"),
        pytest.param(["a"], ["", ""], id="at once"),
        pytest.param(["xyz", "d"], ["a", "b", "c", "", ""], id="the second"),
        pytest.param(["de", "bcd"], ["a", "", "", "", ""], id="the first in the text"),
        pytest.param(["ef"], ["a", "b", "c", "d", "", "e"], id="begun at the end"),
    ],
)
def test_text_ends_before_a_stop_text(stops: list[str], expected: list[str]) -> None:
    tokenizer = byte_tokenizer()
    assert pieces(tokenizer, tokenizer("abcde")["input_ids"], *stops) == expected
