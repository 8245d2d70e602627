"""The prompt of a conversation: its turns as the base's chat template writes them, with the cue to answer.

The template is a program that came with the base, and is rendered as in `gate fit`: in a process of its own
that can be stopped.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Self

from transformers import PreTrainedTokenizerBase

from ..schemas.errors import DataRefused, UsageError
from .fitting.chat_template import ChatTemplate, without_first_token

ROLES = ("system", "user", "assistant")
Turns = Sequence[Mapping[str, str]]


class ChatPrompts:
    """Prompts of many conversations; one process renders them, from the first to the end of the block.

    Any thread may ask; they take turns.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._template.close()

    def write(self, turns: Turns) -> str:
        """Return a conversation as the prompt that its answer follows, without the token of the beginning.

        Encoding the prompt as any text adds that token.

        Args:
            turns: each a mapping of `role` (`system`, `user` or `assistant`) and `content`.

        Raises:
            UsageError: there are no turns, one is malformed, the base has no chat template, or its template
                refuses the conversation or had to be stopped.
        """
        _check(turns)
        if self._tokenizer.chat_template is None:
            raise UsageError(
                "the base's tokenizer has no chat template, so a conversation cannot be written as a prompt",
                hint="give the prompt as one text",
            )
        with self._lock:
            if self._template.has_ended:
                self._template.close()
                self._template = ChatTemplate(self._tokenizer)
            try:
                text = self._template.render(turns)
            except DataRefused as error:
                raise UsageError(f"the conversation {error.message}") from error
        return without_first_token(text, self._tokenizer)


def chat_prompt(tokenizer: PreTrainedTokenizerBase, turns: Turns) -> str:
    """Return the prompt of one conversation; for many, ``ChatPrompts`` spares starting a process for each.

    Raises:
        UsageError: as ``ChatPrompts.write``.
    """
    with ChatPrompts(tokenizer) as prompts:
        return prompts.write(turns)


def _check(turns: Turns) -> None:
    if not turns:
        raise UsageError("the conversation has no turns")
    for place, turn in enumerate(turns, start=1):
        role, content = turn.get("role"), turn.get("content")
        if role not in ROLES:
            listed = ", ".join(f"`{each}`" for each in ROLES)
            raise UsageError(f"turn {place} has the role `{role}`, expected one of {listed}")
        if not isinstance(content, str):
            raise UsageError(f"turn {place} has no text in `content`")
