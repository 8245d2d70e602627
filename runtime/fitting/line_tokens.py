"""The meaning of a tokenizer's tokens for numbered lines, worked out once and kept in a bundle's config.

A forward pass knows ids and has no tokenizer. A small part of the tokens matters: those with a line break,
and those without letters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from ...schemas.answer_order import MAX_LINE_TEXT, MAX_LINE_TOKENS, SYMBOL, WORD, AnswerOrder
from ...schemas.errors import UsageError

_MARKS = ".):"
_AT_ONCE = 4096
_WITHOUT = "fit without answers in order"
# What decoders put for a part of a character, nearly always of a letter.
_PART = "\ufffd"
# Tokenizers have tokens of dozens of line breaks, and one empty line means what several do.
_EMPTY_LINES = re.compile(r"\n ?(?:\n ?)+\n")


def answer_order(tokenizer: PreTrainedTokenizerBase) -> AnswerOrder:
    """Return the rule that answers are in order, with what the tokenizer's tokens mean for it.

    Raises:
        UsageError: the tokenizer has no token for a line break, or for a number and its mark, or more tokens
            that matter than a config may have.
    """
    found: dict[str, list[int]] = {}
    borders = _borders(tokenizer)
    for token, text in _texts(tokenizer):
        meaning = "\n" if token in borders else line_text(text)
        if ("\n" in meaning or WORD not in meaning) and 0 < len(meaning) <= MAX_LINE_TEXT:
            found.setdefault(meaning, []).append(token)
    for needed, what in (("\n", "a line break"), ("1", "a digit"), (".):", "a mark behind a number")):
        if not any(character in text for text in found for character in needed):
            raise UsageError(
                f"the base's tokenizer has no token with {what}, so that no numbered line can be found",
                hint=_WITHOUT,
            )
    count = sum(map(len, found.values()))
    if count > MAX_LINE_TOKENS:
        raise UsageError(
            f"the base's tokenizer has {count} tokens that matter for numbered lines, expected at most "
            f"{MAX_LINE_TOKENS}",
            hint=_WITHOUT,
        )
    return AnswerOrder(
        rule="in-order", tokens={text: tuple(tokens) for text, tokens in sorted(found.items())}
    )


def line_text(text: str) -> str:
    """Return what a text means for numbered lines.

    Each run of blanks, letters or other symbols is there once, and of three or more line breaks two.
    """
    found: list[str] = []
    for character in text:
        if character == "\n" or character in _MARKS or (character.isascii() and character.isdigit()):
            found.append(character)
            continue
        is_letter = character.isalnum() or character == _PART
        kind = " " if character.isspace() else WORD if is_letter else SYMBOL
        if found[-1:] != [kind]:
            found.append(kind)
    return _EMPTY_LINES.sub("\n\n", "".join(found))


def _borders(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the special tokens, between which texts begin and end, as a chat template puts them."""
    added = {token for token, text in tokenizer.added_tokens_decoder.items() if text.special}
    # Unknown words are within a text.
    unknown = {tokenizer.unk_token_id} - {tokenizer.bos_token_id, tokenizer.eos_token_id}
    return frozenset((added | {*tokenizer.all_special_ids}) - unknown)


def _texts(tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[int, str]]:
    # Some decoders drop a blank at the beginning of a text, so a token is decoded behind another.
    before = tokenizer.encode(WORD, add_special_tokens=False)[-1:]
    prefix = str(tokenizer.decode(before))
    count = len(tokenizer)
    for start in range(0, count, _AT_ONCE):
        tokens = range(start, min(start + _AT_ONCE, count))
        texts = tokenizer.batch_decode(
            [[*before, token] for token in tokens], clean_up_tokenization_spaces=False
        )
        for token, text in zip(tokens, texts, strict=True):
            yield token, text.removeprefix(prefix)
