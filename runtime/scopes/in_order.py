"""Answers in the order of the prompt's problems: item k of the prompt's list decides who serves line k.

A number, or an answer of one word, does not show its task, so the text of such an answer cannot decide who
serves it. Where the prompt has a numbered list whose items call for different members, each item is decided
as scope `prompt` decides a prompt, by the mean evidence of its tokens, and serves the lines of the answer
from its number to the next. Tokens before the first number, or behind one that the list does not have, are
decided by their text, as are all answers to other prompts.

A token is served in the pass that reads it, and its output is the next token: the mark behind a number is the
first token that its item serves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from .decision import Stretch
from .numbered_lines import HEAD_TOKENS, LineReader, LineTexts, read_prompt

# In place of the id of a token that came as an embedding.
_UNKNOWN = -1
# The head of a line, and the token behind it, which can still show that it was none.
_WINDOW = HEAD_TOKENS + 2


@dataclass(frozen=True, slots=True)
class OrderedAnswers:
    """The items of each sequence's prompt, N at most, and the item that serves each token so far.

    Attributes:
        texts: what tokens mean.
        items: float32 [B, N, L], the mean evidence of each item's tokens.
        counts: int64 [B], the items of each sequence; 0 where its answer is not served in order.
        begun: int64 [B], the item whose answer the prompt ends in; 0 for none.
        ids: int64 [B, T], the tokens, -1 where one has no id.
        is_answer: bool [B, T].
        numbers: int64 [B, T], counted from 1; 0 where the text decides.
    """

    texts: LineTexts
    items: Tensor
    counts: Tensor
    begun: Tensor
    ids: Tensor
    is_answer: Tensor
    numbers: Tensor

    @classmethod
    def begin(cls, texts: LineTexts, log_posterior: Tensor, stretch: Stretch) -> Self | None:
        """Return the order of answers to prompts with the evidence [B, T, L]; None if none is in order."""
        if stretch.ids is None:
            return None
        device = log_posterior.device
        own, prompt = stretch.own.to(device), stretch.prompt.to(device)
        ids = stretch.ids.to(device)
        read = [
            _read_row(texts, *row) for row in zip(ids.tolist(), prompt.tolist(), log_posterior, strict=True)
        ]
        counts = torch.tensor([len(row.items) for row in read], device=device)
        if not bool(counts.any()):
            return None
        items = torch.zeros(len(read), int(counts.max()), log_posterior.shape[-1], device=device)
        numbers = torch.zeros_like(ids)
        for place, row in enumerate(read):
            items[place, : len(row.items)] = row.items
            if row.begun:
                numbers[place, row.begun_at :] = row.begun
        begun = torch.tensor([row.begun for row in read], device=device)
        found = cls(texts, items, counts, begun, ids, own & ~prompt, numbers * prompt)
        return found._numbered(0)

    def select(self, rows: Tensor) -> Self:
        """Return the order of other rows."""
        return replace(
            self,
            items=self.items[rows],
            counts=self.counts[rows],
            begun=self.begun[rows],
            ids=self.ids[rows],
            is_answer=self.is_answer[rows],
            numbers=self.numbers[rows],
        )

    def advance(self, past_tokens: int | None, stretch: Stretch) -> Self:
        """Return the order with more tokens of the answer, behind the first ``past_tokens``."""
        kept, device = slice(past_tokens), self.ids.device
        shape = stretch.own.shape
        new = torch.full(shape, _UNKNOWN, device=device) if stretch.ids is None else stretch.ids.to(device)
        longer = replace(
            self,
            ids=torch.cat([self.ids[:, kept], new], dim=1),
            is_answer=torch.cat([self.is_answer[:, kept], torch.ones_like(new, dtype=torch.bool)], dim=1),
            numbers=torch.cat([self.numbers[:, kept], torch.zeros_like(new)], dim=1),
        )
        return longer._numbered(longer.ids.shape[1] - shape[1])

    def _numbered(self, first: int) -> Self:
        """Return the order with the items of the answers' tokens from ``first`` on."""
        start = max(first - _WINDOW, 0)
        numbers, counts, begun = self.numbers.clone(), self.counts.tolist(), self.begun.tolist()
        ids, known = self.ids[:, start:].tolist(), self.numbers[:, start:].tolist()
        answers = self.is_answer[:, start:].tolist()
        goes_on = self.is_answer[:, :start].any(dim=1).tolist()
        for row, count in enumerate(counts):
            places = [place for place, is_answer in enumerate(answers[row]) if is_answer]
            if not count or not places or start + places[-1] < first:
                continue
            texts = self.texts.read(ids[row][place] for place in places)
            reader, behind = _reader_before(
                texts,
                [known[row][place] for place in places],
                sum(start + place < first for place in places),
                begun=None if goes_on[row] else begun[row],
            )
            found = [reader.read(text) for text in texts[behind:]]
            for place, number in zip(places[behind:], found, strict=True):
                if start + place >= first:
                    numbers[row, start + place] = number if number <= count else 0
        return replace(self, numbers=numbers)

    def latest(self, tokens: int) -> Self:
        """Return the order of the last tokens alone."""
        return replace(
            self,
            ids=self.ids[:, -tokens:],
            is_answer=self.is_answer[:, -tokens:],
            numbers=self.numbers[:, -tokens:],
        )

    @property
    def is_held(self) -> Tensor:
        """Bool [B, T], the tokens that an item serves."""
        return self.numbers > 0

    @property
    def logits(self) -> Tensor:
        """Float32 [B, T, L], the evidence of each token's item; that of item 1 where none serves it."""
        places = (self.numbers - 1).clamp(min=0).unsqueeze(-1).expand(-1, -1, self.items.shape[-1])
        return self.items.gather(1, places)


@dataclass(frozen=True, slots=True)
class _Row:
    """One prompt: the evidence of its items [N, L], the item that it ends in, and from which token on."""

    items: Tensor
    begun: int = 0
    begun_at: int = 0


def _read_row(texts: LineTexts, ids: list[int], prompt: list[bool], log_posterior: Tensor) -> _Row:
    places = [place for place, is_prompt in enumerate(prompt) if is_prompt]
    found = read_prompt(texts.read(ids[place] for place in places))
    means = [log_posterior[[places[token] for token in item]].mean(dim=0) for item in found.items if item]
    # Without tokens an item cannot be decided, and items of one member need no order.
    if len(means) < len(found.items) or len({int(mean.argmax()) for mean in means}) < 2:
        return _Row(log_posterior[:0, :])
    if found.begun is None or found.begun[0] > len(means):
        return _Row(torch.stack(means))
    return _Row(torch.stack(means), found.begun[0], places[found.begun[1]])


def _reader_before(
    texts: list[str], numbers: list[int], known: int, *, begun: int | None
) -> tuple[LineReader, int]:
    """Return the reader of an answer at the first token that has to be read, and which token that is.

    Args:
        texts: of the answer's last tokens.
        numbers: their items, as far as they are known.
        known: how many are.
        begun: the item that the answer begins in, 0 for none; None if its beginning is not among the texts.
    """
    for place in reversed(range(known)):
        if "\n" in texts[place]:
            reader = LineReader(numbers[place], is_within_line=True)
            reader.read(texts[place])
            return reader, place + 1
    if begun is not None:
        return LineReader(begun, is_within_line=bool(begun)), 0
    return LineReader(numbers[known - 1], is_within_line=True), known
