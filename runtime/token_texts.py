"""The text that each token adds to those before it."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

# What a decoder puts in place of bytes that are not yet a whole character.
_INCOMPLETE = "\ufffd"
# No character of UTF-8 has more bytes; after that it is a byte that is not part of a character.
_MAX_PENDING_TOKENS = 4


class TokenTexts:
    """The text of tokens as they come; together the pieces are a UTF-8 text's whole.

    A token decoded alone would lose the space before its word, and part of a character would be a
    question mark. So a token is decoded with those before it, and where a character takes several tokens
    the last of them gets it and the others get nothing.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        # The last tokens whose text was handed out, and those behind them.
        self._ids: list[int] = []
        self._done = 0

    def add(self, token: int) -> str:
        """Return the text that the next token completes."""
        self._ids.append(token)
        return self._take(is_last=False)

    def rest(self) -> str:
        """Return the text of the tokens that complete no character; there are no more tokens."""
        return self._take(is_last=True)

    def _take(self, *, is_last: bool) -> str:
        text = self._decode(self._ids)
        waiting = len(self._ids) - self._done
        if text.endswith(_INCOMPLETE) and waiting < _MAX_PENDING_TOKENS and not is_last:
            return ""
        piece = text[len(self._decode(self._ids[: self._done])) :]
        if piece:
            # Tokens without text stay, for a decoder drops the space before the first word.
            del self._ids[: self._done]
        self._done = len(self._ids)
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        return str(
            self._tokenizer.decode(
                list(ids), skip_special_tokens=self._skip_special_tokens, clean_up_tokenization_spaces=False
            )
        )


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Return the text of each token, as ``TokenTexts`` cuts it."""
    pieces = TokenTexts(tokenizer, skip_special_tokens=False)
    texts = [pieces.add(token) for token in ids]
    if texts:
        texts[-1] += pieces.rest()
    return texts
