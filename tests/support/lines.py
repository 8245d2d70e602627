"""A vocabulary of numbered lines for the tiny models: line breaks, digits, marks, and words for the rest."""

from __future__ import annotations

from typing import Any

from meteora_registry.runtime.scopes.numbered_lines import LineTexts
from meteora_registry.schemas.answer_order import AnswerOrder

# The first tokens of the vocabulary are left to the words of tests.
_TEXTS = dict(zip([*"\n0123456789.):- "], range(40, 56), strict=True))
ANSWERS: dict[str, Any] = {
    "rule": "in-order",
    "tokens": {text: [token] for text, token in _TEXTS.items()},
}
LINE_TEXTS = LineTexts.of(AnswerOrder.from_value(ANSWERS, what="answers"))


def encode(text: str) -> list[int]:
    """Return a token for each character: ``a`` is 1, ``b`` 2, up to ``z``."""
    return [_TEXTS[character] if character in _TEXTS else ord(character) - 96 for character in text]
