"""The prompts of a request as rows of tokens, checked against the base's context and vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from ..runtime.chat_prompt import ChatPrompts
from ..runtime.loaded_bundle import LoadedBundle
from ..schemas.errors import UsageError
from .errors import ApiError
from .limits import Limits
from .requests import ChatForm, Form, GenerationRequest
from .rows import Events, Row, Sampling


class PromptReader:
    """The reader of prompts for one base.

    Args:
        loaded: the bundle on its base.
        limits: of answers.
    """

    def __init__(self, loaded: LoadedBundle, limits: Limits) -> None:
        self._loaded = loaded
        self._limits = limits
        self._chat = ChatPrompts(loaded.tokenizer)
        config = loaded.model.config.get_text_config()
        # A base that keeps a state in place of a cache has no such limit.
        self._context_tokens: int | None = getattr(config, "max_position_embeddings", None)
        self._vocabulary: int = config.vocab_size

    def start(self) -> None:
        """Start the process that writes conversations, which takes a second."""
        with suppress(UsageError):
            self._chat.write([{"role": "user", "content": ""}])

    def close(self) -> None:
        """End that process."""
        self._chat.close()

    def read(self, request: GenerationRequest, events: Events) -> list[Row]:
        """Return a row for each prompt.

        Raises:
            ApiError: a prompt is empty, too long, or not one of the base's.
        """
        form = request.form
        sampling = Sampling(
            1.0 if form.temperature is None else form.temperature,
            1.0 if form.top_p is None else form.top_p,
            form.seed,
        )
        return [
            Row(place, request.target, ids, self._room(form, ids), form.stops, sampling, events)
            for place, ids in enumerate(self._prompts_of(form))
        ]

    def _prompts_of(self, form: Form) -> Iterator[list[int]]:
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

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._loaded.encode(text, verbose=False)["input_ids"][0].tolist()
        return ids

    def _check(self, param: str, ids: list[int]) -> list[int]:
        if not ids:
            raise ApiError(400, "the prompt has no tokens", param=param)
        if max(ids) >= self._vocabulary:
            raise ApiError(
                400, f"the base has the tokens 0 to {self._vocabulary - 1}, found {max(ids)}", param=param
            )
        return ids

    def _room(self, form: Form, ids: Sequence[int]) -> int:
        """Return how long the answer to a prompt may be."""
        asked = form.answer_tokens
        most = self._limits.max_new_tokens
        room = most if self._context_tokens is None else self._context_tokens - len(ids)
        if room < (asked or 1):
            answer = f" and the answer may have {asked}" if asked else ""
            raise ApiError(
                400,
                f"the base's context is {self._context_tokens} tokens, the prompt has {len(ids)}{answer}",
                param="messages" if isinstance(form, ChatForm) else "prompt",
                code="context_length_exceeded",
            )
        return min(room, most) if asked is None else asked
