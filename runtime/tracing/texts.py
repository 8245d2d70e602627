"""What each token added to the text."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

# What a decoder puts in place of bytes that are not yet a whole character.
_INCOMPLETE = "\ufffd"
# No character of UTF-8 has more bytes; past that it is a byte that stands for nothing.
_MAX_PENDING_TOKENS = 4


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text that each token adds to what stands before it; of a text in UTF-8 together the whole.

    A token decoded alone would lose the space before its word, and part of a character would be a
    question mark. So a token is decoded with those before it, and where a character takes several tokens
    the last of them gets it and the others get nothing.
    """
    texts: list[str] = []
    # The tokens from `anchor` on are decoded together; the text of those before `done` was handed out.
    anchor = done = 0
    for end in range(1, len(ids) + 1):
        before = _decode(tokenizer, ids[anchor:done])
        text = _decode(tokenizer, ids[anchor:end])
        if text.endswith(_INCOMPLETE) and end - done < _MAX_PENDING_TOKENS and end < len(ids):
            texts.append("")
            continue
        texts.append(text[len(before) :])
        anchor, done = done, end
    return texts


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
