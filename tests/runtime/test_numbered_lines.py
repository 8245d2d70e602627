"""Numbered lines in a text of tokens: which item each token belongs to, and which list a prompt has."""

from __future__ import annotations

import re

import pytest

from meteora_registry.runtime.fitting import line_tokens
from meteora_registry.runtime.fitting.line_tokens import answer_order, line_text
from meteora_registry.runtime.scopes.numbered_lines import HEAD_TOKENS, LineReader, LineTexts, read_prompt
from meteora_registry.schemas.answer_order import MAX_LINE_TEXT
from meteora_registry.schemas.errors import UsageError
from support.byte_tokens import byte_tokenizer
from support.task_data import tiny_tokenizer

# Words with the blank before them, digits one by one, and every other character by itself.
_TOKEN = re.compile(r" ?[A-Za-z]+|[\s\S]")


def by_item(text: str) -> list[tuple[int, str]]:
    """Return the pieces of an answer with the item that each belongs to."""
    reader, found = LineReader(), list[tuple[int, str]]()
    for token in _TOKEN.findall(text):
        number = reader.read(line_text(token))
        if found and found[-1][0] == number:
            found[-1] = (number, found[-1][1] + token)
        else:
            found.append((number, token))
    return found


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("1. a\n2. b", [(0, "1"), (1, ". a\n2"), (2, ". b")]),
        ("1) a\n2: b", [(0, "1"), (1, ") a\n2"), (2, ": b")]),
        ("1.\na\n2.\nb", [(0, "1"), (1, ".\na\n2"), (2, ".\nb")]),
        ("12. a", [(0, "12"), (12, ". a")]),
        ("Answer 1: a\nAnswer 2: b", [(0, "Answer 1"), (1, ": a\nAnswer 2"), (2, ": b")]),
        ("(1) a\n(2) b", [(0, "(1"), (1, ") a\n(2"), (2, ") b")]),
        ("  3. a", [(0, "  3"), (3, ". a")]),
        ("**1.** a\n- 2. b", [(0, "**1"), (1, ".** a\n- 2"), (2, ". b")]),
        ("[INST] 1. a", [(0, "[INST] 1"), (1, ". a")]),
        ("Here:\n1. a", [(0, "Here:\n1"), (1, ". a")]),
    ],
    ids=[
        "dots",
        "other-marks",
        "text-below",
        "two-digits",
        "words",
        "brackets",
        "indented",
        "symbols",
        "form",
        "preface",
    ],
)
def test_item_of_a_numbered_line_begins_with_its_mark(text: str, pieces: list[tuple[int, str]]) -> None:
    assert by_item(text) == pieces


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("1. 7.\n2. b", [(0, "1"), (1, ". 7.\n2"), (2, ". b")]),
        ("1. a\n12 b\n3, c", [(0, "1"), (1, ". a\n12 b\n3, c")]),
        # Until the digit behind it a mark looks like one.
        ("1. a\n2.5 m", [(0, "1"), (1, ". a\n2"), (2, "."), (1, "5 m")]),
        ("1. a\n12:30", [(0, "1"), (1, ". a\n12"), (12, ":"), (1, "30")]),
        ("1. a\nStep 3. b", [(0, "1"), (1, ". a\nStep 3. b")]),
        ("1. a\nI have 3.", [(0, "1"), (1, ". a\nI have 3.")]),
        ("1. a\nThere we see the 3: b", [(0, "1"), (1, ". a\nThere we see the 3: b")]),
        ("1. a\n20261. b", [(0, "1"), (1, ". a\n20261. b")]),
        ("1. a\n\n\nb 2. c", [(0, "1"), (1, ". a\n\n\nb 2. c")]),
        ("1. a\n1. b\n3. c", [(0, "1"), (1, ". a\n1. b\n3"), (3, ". c")]),
        ("1. a\n" + " " * HEAD_TOKENS + "2. b", [(0, "1"), (1, ". a\n" + " " * HEAD_TOKENS + "2. b")]),
    ],
    ids=[
        "answer-is-a-number",
        "no-mark",
        "decimal",
        "time",
        "word-and-dot",
        "sentence",
        "long-label",
        "long-number",
        "within-a-line",
        "repeated-and-missing",
        "long-head",
    ],
)
def test_other_numbers_are_text_of_the_item(text: str, pieces: list[tuple[int, str]]) -> None:
    assert by_item(text) == pieces


def list_of(text: str) -> tuple[list[str], tuple[int, str] | None]:
    """Return the items of a prompt, and the number and text that it ends in."""
    tokens = _TOKEN.findall(text)
    found = read_prompt([line_text(token) for token in tokens])
    begun = None if found.begun is None else (found.begun[0], "".join(tokens[found.begun[1] :]))
    return ["".join(tokens[place] for place in item) for item in found.items], begun


@pytest.mark.parametrize(
    ("text", "items", "begun"),
    [
        ("Do:\n1. a\n2. b\n", [" a\n", " b\n"], None),
        ("1. a\n2. b\n\n1.", [" a\n", " b\n\n"], (1, "1.")),
        ("1. a\n2. b\n\nAnswer 1: ", [" a\n", " b\n\n"], (1, "Answer 1: ")),
        ("1. a\n\nb\n2. c\n\nNow answer.\n", [" a\n\nb\n", " c\n\n"], None),
        ("1.\n\na\n2.\n\nb\n\nc", ["\n\na\n", "\n\nb\n\n"], None),
        # Examples with their answers before the list that is asked.
        ("1. a\n2. b\n\n1. x\n2. y\n\n1. c\n2. d\n", [" c\n", " d\n"], None),
        ("1. a\n2. b\n7. c\n3. d", [" a\n", " b\n7. c\n", " d"], None),
        ("1. a\n2. b\n3. \n", [" a\n", " b\n"], (3, "3. \n")),
        ("1. a\n2. b\n2.", [" a\n", " b\n"], (2, "2.")),
    ],
    ids=[
        "plain",
        "begun",
        "begun-in-words",
        "paragraphs",
        "below",
        "examples",
        "other-numbers",
        "empty",
        "begun-second",
    ],
)
def test_prompt_has_the_items_of_its_last_list(
    text: str, items: list[str], begun: tuple[int, str] | None
) -> None:
    assert list_of(text) == (items, begun)


@pytest.mark.parametrize("text", ["", "a\n\nb", "1. a", "2. a\n3. b", "a 1. b 2. c", "1. a\n\n1. b"])
def test_prompt_without_a_list_has_no_items(text: str) -> None:
    assert list_of(text) == ([], None)


def test_tokenizer_tells_what_its_tokens_mean() -> None:
    tokenizer = byte_tokenizer(("1", "2"), ("Ċ", "Ċ"), (".", "Ċ"), ("a", "Ċ"), ("a", "b"), ("Ġ", "a"))
    order = answer_order(tokenizer)
    texts = LineTexts.of(order)
    for text in ("12. ab a\n\n", "3)a\n 4: é.\n", "\t(5)\r\n"):
        ids = tokenizer(text)["input_ids"]
        # Those that do not matter are words, with a blank or without, and several of them are as good as one.
        found, expected = "".join(texts.read(ids)), line_text(text)
        assert re.sub("[ x]*x", "x", found) == re.sub("[ x]*x", "x", expected)
    assert order.tokens["x\n"] == tuple(tokenizer.convert_tokens_to_ids(["aĊ"]))
    # Words are what is not kept.
    assert not {"x", " x"} & order.tokens.keys()
    assert texts.read([10**9, -1]) == ["x", "x"]


def test_special_tokens_are_line_breaks_and_unknown_words_are_not() -> None:
    tokenizer = byte_tokenizer(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    texts = LineTexts.of(answer_order(tokenizer))
    ids = tokenizer.convert_tokens_to_ids(["<s>", "<|user|>", "</s>", "<unk>"])
    assert texts.read(ids) == ["\n", "\n", "\n", "x"]
    # The last item ends with its message.
    found = read_prompt(texts.read(tokenizer("<s>1. a\n2. b</s>\n<|user|>c")["input_ids"]))
    assert [len(item) for item in found.items] == [3, 4]


@pytest.mark.parametrize("breaks", ["\n" * 3, "\n" * 40, "\r\n" * 20, "\n \t\n" * 12])
def test_many_line_breaks_in_one_token_are_an_empty_line(breaks: str) -> None:
    texts = ["1", ".", "x", line_text(breaks), "2", ".", "x", line_text(breaks), "x"]
    assert max(map(len, texts)) <= MAX_LINE_TEXT
    assert read_prompt(texts).items == (range(2, 4), range(6, 8))


def test_tokenizer_with_too_many_tokens_that_matter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_tokens, "MAX_LINE_TOKENS", 20)
    with pytest.raises(
        UsageError, match="tokens that matter for numbered lines, expected at most 20"
    ) as caught:
        answer_order(byte_tokenizer())
    assert caught.value.hint == "fit without answers in order"


def test_tokenizer_without_line_breaks_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        answer_order(tiny_tokenizer())
    assert str(caught.value) == (
        "the base's tokenizer has no token with a line break, so that no numbered line can be found"
    )
