"""Numbered lines in a text that is known by its tokens: which item of a list each of them belongs to.

A line has a number if it begins with a number and a mark: `1.`, `2)`, `3:`. A few words or symbols may be
before it, as in `Answer 4:`, `(5)` or `**6.`; behind a word only `)` and `:` are marks, since "it has 3." is
an answer. A mark between digits does not count: `1.5`, `12:30`. A line without a number belongs to the item
before it.

The texts are those of ``LineTexts``, which are short, so that a text is read in one pass and without regular
expressions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Self

from ...schemas.answer_order import SYMBOL, WORD, AnswerOrder

# A head is over after this many tokens, blanks included.
HEAD_TOKENS = 12
_MARKS = frozenset(".):")
# Tokens of letters, or of symbols, before a number: "Answer 1:" has one, "[INST] 1." three. Each token of a
# word counts, since the blank before a word is not in its text.
_MAX_LABEL = 3
_MAX_DIGITS = 4


@dataclass(frozen=True, slots=True)
class LineTexts:
    """The texts of a base's tokens for numbered lines, by their ids; any other token is a word."""

    texts: Mapping[int, str] = field(hash=False)

    @classmethod
    def of(cls, order: AnswerOrder) -> Self:
        """Return the texts that a bundle's config states."""
        return cls({token: text for text, tokens in order.tokens.items() for token in tokens})

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the same: a cache is copied with its decisions, and these never change."""
        return self

    def read(self, tokens: Iterable[int]) -> list[str]:
        """Return the text of each token, ``x`` for one that does not matter."""
        return [self.texts.get(token, WORD) for token in tokens]


class _Phase(Enum):
    """The part of a line that was read last."""

    BEGIN = "nothing yet"
    LABEL = "words that a number may follow"
    NUMBER = "the digits of a number"
    MARK = "a number and its mark"
    REST = "anything else"


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a numbered line: its number, its first token and the token of its mark."""

    number: int
    start: int
    mark: int


class LineReader:
    """A text that is read token by token.

    Args:
        number: the item that the text begins in; 0 for none.
        is_within_line: whether it begins in a line that has no head any more.

    Attributes:
        number: the item that the token read last belongs to; 0 for none.
        heads: of the numbered lines so far.
        blanks: the tokens that an empty line ended in, except between a head and the first text behind it.
    """

    def __init__(self, number: int = 0, *, is_within_line: bool = False) -> None:
        self.number = number
        self.heads: list[Head] = []
        self.blanks: list[int] = []
        self._phase = _Phase.REST if is_within_line else _Phase.BEGIN
        self._has_text = True
        self._token = -1
        self._start = self._head_tokens = self._before = 0
        self._label = self._digits = ""

    @property
    def is_open(self) -> bool:
        """Whether the text ends behind a head, before any text of its item."""
        return not self._has_text

    def read(self, text: str) -> int:
        """Read the next token, and return the item that it belongs to."""
        self._token += 1
        if self._phase is _Phase.BEGIN:
            self._start = self._token
        self._head_tokens += 1
        # A mark still waits for what follows it.
        if self._head_tokens > HEAD_TOKENS and self._phase is not _Phase.MARK:
            self._phase = _Phase.REST
        for character in text:
            self._read_character(character)
        return self.number

    def _read_character(self, character: str) -> None:
        if character == "\n":
            self._end_line()
            return
        if character != " ":
            self._has_text = True
        if character.isdigit():
            self._read_digit(character)
        elif character in _MARKS and self._phase is _Phase.NUMBER:
            self._read_mark(character)
        elif character in (WORD, SYMBOL) and self._phase in (_Phase.BEGIN, _Phase.LABEL):
            self._label += character
            self._phase = _Phase.LABEL if len(self._label) <= _MAX_LABEL else _Phase.REST
        elif character != " " or self._phase in (_Phase.NUMBER, _Phase.MARK):
            self._phase = _Phase.REST

    def _end_line(self) -> None:
        if self._phase is _Phase.BEGIN and self._has_text:
            self.blanks.append(self._token)
        self._phase = _Phase.BEGIN
        self._head_tokens = 0
        self._label = self._digits = ""
        self._start = self._token + 1

    def _read_digit(self, digit: str) -> None:
        if self._phase is _Phase.MARK:
            # "1.5": the mark was none.
            self.heads.pop()
            self.number, self._phase = self._before, _Phase.REST
        elif self._phase is not _Phase.REST:
            self._digits += digit
            self._phase = _Phase.NUMBER if len(self._digits) <= _MAX_DIGITS else _Phase.REST

    def _read_mark(self, mark: str) -> None:
        if mark == "." and self._label.endswith(WORD):
            self._phase = _Phase.REST
            return
        self._phase, self._has_text = _Phase.MARK, False
        self._before, self.number = self.number, int(self._digits)
        self.heads.append(Head(self.number, self._start, self._token))


@dataclass(frozen=True, slots=True)
class PromptList:
    """The numbered list of a prompt.

    Attributes:
        items: the tokens of each, in order; empty without a list.
        begun: the item whose answer the prompt ends in, and the first token of that answer's head; None if
            it ends in none.
    """

    items: tuple[range, ...]
    begun: tuple[int, int] | None


def read_prompt(texts: Sequence[str]) -> PromptList:
    """Return the last list of a prompt that counts from 1 to 2 or more, from the text of each token.

    Numbers that do not go on with it belong to its items. An item reaches to the next one's line, the last
    one to its first empty line.
    """
    reader = LineReader()
    for text in texts:
        reader.read(text)
    heads = reader.heads
    # A number without text asks for nothing.
    begun = heads[-1] if reader.is_open and heads else None
    listed = _last_list(heads if begun is None else heads[:-1])
    if not listed:
        return PromptList((), None)
    behind = listed[-1].mark
    borders = [head.start for head in heads if head.mark > behind and (head.number == 1 or head is begun)]
    borders += [token + 1 for token in reader.blanks if token > behind]
    ends = [*(head.start for head in listed[1:]), min(borders, default=len(texts))]
    return PromptList(
        tuple(range(head.mark + 1, end) for head, end in zip(listed, ends, strict=True)),
        None if begun is None else (begun.number, begun.start),
    )


def _last_list(heads: Sequence[Head]) -> list[Head]:
    found: list[Head] = []
    current: list[Head] = []
    for head in heads:
        if head.number == 1:
            current = []
        if head.number == len(current) + 1:
            current.append(head)
        if len(current) > 1:
            found = current
    return found
