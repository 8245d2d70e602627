"""The rule by which answers are served in the order of the prompt's problems, as a config states it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from .document import Count, Document

# In place of letters, and of other characters than digits, blanks, line breaks and the marks of a number.
WORD, SYMBOL = "x", "-"
MAX_LINE_TEXT = 16
MAX_LINE_TOKENS = 1 << 16
LineText = Annotated[str, StringConstraints(pattern=r"^[x \n0-9).:-]+$", max_length=MAX_LINE_TEXT)]


class AnswerOrder(Document):
    """The tokens by which the numbered lines of a prompt and its answer are found.

    Attributes:
        rule: the k-th line of the answer is served as the k-th item of the prompt's list is decided.
        tokens: the ids of all tokens of a text: line breaks, digits, ``.``, ``)`` and ``:`` as they are, and
            a blank, ``x`` or ``-`` for one or more blanks, letters or others. Any other token is ``x``.
    """

    rule: Literal["in-order"]
    tokens: dict[LineText, tuple[Count, ...]] = Field(min_length=1, max_length=MAX_LINE_TOKENS)

    @model_validator(mode="after")
    def _check_each_token_has_one_text(self) -> Self:
        count = sum(map(len, self.tokens.values()))
        if count > MAX_LINE_TOKENS:
            raise ValueError(f"`tokens` has {count} tokens, expected at most {MAX_LINE_TOKENS}")
        if len({token for tokens in self.tokens.values() for token in tokens}) < count:
            raise ValueError("`tokens` gives a token two texts")
        return self
