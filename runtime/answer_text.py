"""The text of an answer while its tokens come, in pieces that never split a character or a stop text."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

# What decoders put for bytes that are not yet, or never will be, a character.
_INCOMPLETE = "\ufffd"


class AnswerText:
    """The text of one answer, token by token; joined, its pieces are what decoding all tokens at once gives.

    Args:
        tokenizer: decodes, without special tokens.
        stops: texts that end the answer; neither they nor what follows is part of it.

    Attributes:
        is_stopped: whether one of them was found.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._ids: list[int] = []
        # Tokens from `_from` are decoded together, since some begin with a space only behind others. Those
        # before `_read` are part of the text already.
        self._from = self._read = 0
        self._pending = ""
        self.is_stopped = False

    def add(self, token: int) -> str:
        """Add a token, and return the text that is now certain."""
        self._ids.append(token)
        found = self._decode(len(self._ids))
        if found.endswith(_INCOMPLETE):
            return ""
        return self._pass_on(self._new(found), is_end=False)

    def end(self) -> str:
        """Return the rest of the text: what could still have become something else."""
        if self.is_stopped:
            return ""
        return self._pass_on(self._new(self._decode(len(self._ids))), is_end=True)

    def _decode(self, end: int) -> str:
        text = self._tokenizer.decode(self._ids[self._from : end], skip_special_tokens=True)
        return str(text)

    def _new(self, found: str) -> str:
        new = found[len(self._decode(self._read)) :]
        # A token without text, such as a special one, does not give those behind it their context.
        if new:
            self._from, self._read = self._read, len(self._ids)
        return new

    def _pass_on(self, new: str, *, is_end: bool) -> str:
        text = self._pending + new
        ends = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        self.is_stopped = bool(ends)
        keep = 0 if is_end or ends else self._begun(text)
        end = min(ends, default=len(text) - keep)
        self._pending = text[end:]
        return text[:end]

    def _begun(self, text: str) -> int:
        """Return how many characters at the end of a text may be the beginning of a stop text."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        sizes = range(min(longest, len(text)), 0, -1)
        return next((size for size in sizes if any(stop.startswith(text[-size:]) for stop in self._stops)), 0)
