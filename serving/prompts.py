"""The prompts of a request as tokens, checked against the base's context and vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ..runtime.chat_prompt import ChatPrompts
from ..schemas.errors import UsageError
from .errors import ApiError
from .requests import ChatForm, Form


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a request.

    Attributes:
        ids: its tokens.
        room: how long its answer may be.
    """

    ids: Sequence[int]
    room: int


class PromptReader:
    """The reader of prompts for one base.

    Args:
        tokenizer: the base's.
        encode: returns the tokens of a text.
        vocabulary: how many tokens the base knows; None if it does not state it.
        max_new_tokens: the longest answer where a request states none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        encode: Callable[[str], list[int]],
        vocabulary: int | None,
        max_new_tokens: int,
    ) -> None:
        self._chat = ChatPrompts(tokenizer)
        self._encode = encode
        self._vocabulary = vocabulary
        self._max_new_tokens = max_new_tokens

    def start(self) -> None:
        """Start the process that writes conversations, which takes a second."""
        with suppress(UsageError):
            self._chat.write([{"role": "user", "content": ""}])

    def close(self) -> None:
        """End that process."""
        self._chat.close()

    def read(self, form: Form, *, context: int | None) -> list[Prompt]:
        """Return the prompts of a request.

        Args:
            form: its fields.
            context: how many tokens the base takes at once; None without a bound.

        Raises:
            ApiError: a prompt is empty, too long, or not one of the base's.
        """
        return [Prompt(ids, self._room(form, len(ids), context)) for ids in self._ids_of(form)]

    def _ids_of(self, form: Form) -> Iterator[list[int]]:
        if isinstance(form, ChatForm):
            yield self._check("messages", self._encode(self._write(form)))
            return
        for prompt in form.prompts:
            yield self._check("prompt", self._encode(prompt) if isinstance(prompt, str) else prompt)

    def _write(self, form: ChatForm) -> str:
        try:
            return self._chat.write([message.turn for message in form.messages])
        except UsageError as error:
            raise ApiError(400, error.message, param="messages", code="chat_template") from error

    def _check(self, param: str, ids: list[int]) -> list[int]:
        if not ids:
            raise ApiError(400, "the prompt has no tokens", param=param)
        if self._vocabulary is not None and max(ids) >= self._vocabulary:
            raise ApiError(
                400, f"the base has the tokens 0 to {self._vocabulary - 1}, found {max(ids)}", param=param
            )
        return ids

    def _room(self, form: Form, tokens: int, context: int | None) -> int:
        """Return how long the answer to a prompt may be."""
        asked, most = form.answer_tokens, self._max_new_tokens
        room = most if context is None else context - tokens
        if room < (1 if asked is None else asked):
            answer = f" and the answer may have {asked}" if asked else ""
            raise ApiError(
                400,
                f"the base's context is {context} tokens, the prompt has {tokens}{answer}",
                param="messages" if isinstance(form, ChatForm) else "prompt",
                code="context_length_exceeded",
            )
        return min(room, most) if asked is None else asked
