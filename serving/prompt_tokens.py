"""The prompts of a request as tokens, checked against what the base takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """The way from a request to the tokens of its prompts.

    Attributes:
        chat: writes conversations.
        encode: returns the tokens of a text.
        vocabulary: how many tokens the base knows; None if that is not known.
        max_new_tokens: the longest answer where a request states none.
    """

    chat: ChatPrompts
    encode: Callable[[str], list[int]]
    vocabulary: int | None
    max_new_tokens: int

    def read(self, form: Form, *, context: int | None) -> list[Prompt]:
        """Return the prompts of a request.

        Args:
            form: its fields.
            context: how many tokens the base takes at once; None without a bound.

        Raises:
            ApiError: a prompt is empty, has a token that the base does not know, or does not leave room for
                the answer; or a conversation cannot be written.
        """
        return [Prompt(ids, self._room(form, len(ids), context)) for ids in self._ids_of(form)]

    def _ids_of(self, form: Form) -> Iterator[list[int]]:
        param = _param_of(form)
        for prompt in self._texts_of(form):
            ids = self.encode(prompt) if isinstance(prompt, str) else prompt
            if not ids:
                raise ApiError(400, "the prompt has no tokens", param=param)
            if self.vocabulary is not None and max(ids) >= self.vocabulary:
                raise ApiError(
                    400, f"the base has the tokens 0 to {self.vocabulary - 1}, found {max(ids)}", param=param
                )
            yield ids

    def _texts_of(self, form: Form) -> list[str] | list[list[int]]:
        if not isinstance(form, ChatForm):
            return form.prompts
        try:
            return [self.chat.write([message.turn for message in form.messages])]
        except UsageError as error:
            raise ApiError(400, error.message, param="messages", code="chat_template") from error

    def _room(self, form: Form, tokens: int, context: int | None) -> int:
        asked, most = form.answer_tokens, self.max_new_tokens
        room = most if context is None else context - tokens
        if context is not None and room < (asked or 1):
            raise ApiError(
                400,
                f"the base's context is {context} tokens, the prompt has {tokens}"
                + (f" and the answer may have {asked}" if asked else ""),
                param=_param_of(form),
                code="context_length_exceeded",
            )
        return min(room, most) if asked is None else asked


def _param_of(form: Form) -> str:
    return "messages" if isinstance(form, ChatForm) else "prompt"
