"""Answers, whole or piece by piece while they are written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .answer_text import AnswerText
from .routing_record import RoutingRecord
from .scopes.decision import Decision


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one prompt, and who gave it.

    Attributes:
        text: the answer.
        decisions: the decisions that were made for it, each with its members and its confidence: one for the
            prompt, or in scope `segment` one for each segment. None where every module decides for every
            token (`token`, `layer`), and none for a forced member: then `routing` shows who served.
    """

    text: str
    decisions: tuple[Decision, ...]


class AnswerStream(Iterator[str]):
    """The pieces of one answer as they are written; then the answer.

    The generation runs in a thread of its own, from the first piece on. It stops at its next token by
    `close`, at the end of a `with` block, or by an exception while a piece is awaited, such as
    KeyboardInterrupt. What was read until then remains.

    Attributes:
        prompt_tokens: the tokens of the prompt.
        max_new_tokens: the longest answer.
    """

    def __init__(
        self,
        generate: Callable[[BaseStreamer, StoppingCriteriaList], object],
        tokenizer: PreTrainedTokenizerBase,
        record: RoutingRecord,
        *,
        prompt_tokens: int,
        max_new_tokens: int,
        ends: frozenset[int],
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.max_new_tokens = max_new_tokens
        self._ends = ends
        self._record = record
        self._written = _Written(tokenizer)
        self._read: list[str] = []
        self._stopped = _Stopped()
        self._pieces = _pieces(generate, self._written, self._stopped)

    def __next__(self) -> str:
        """Return the next piece, which is never empty.

        Raises:
            UsageError: as for ``LoadedBundle.generate``.
        """
        piece = next(self._pieces)
        self._read.append(piece)
        return piece

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the generation if it runs; there are no more pieces."""
        self._pieces.close()

    @property
    def answer(self) -> Answer:
        """The answer as far as it was read, with the decisions so far."""
        return Answer("".join(self._read), self._record.decisions)

    @property
    def answer_tokens(self) -> int:
        """The tokens that were written so far, the one that ends the answer included."""
        return self._written.tokens

    @property
    def was_cut(self) -> bool:
        """Whether the answer ended because it was as long as it may be."""
        return self.answer_tokens >= self.max_new_tokens and self._written.last not in self._ends

    @property
    def shares(self) -> dict[str | None, float]:
        """Each member's share of the answer so far, over its tokens and the modules; None is the base."""
        # The last token of the prompt is the one that the answer's first comes from.
        return self._record.shares(start=max(self.prompt_tokens - 1, 0))


class _Written(BaseStreamer):
    """The tokens that ``generate`` hands out, as pieces of text on a queue; None ends them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.queue: SimpleQueue[str | BaseException | None] = SimpleQueue()
        self.tokens = 0
        self.last: int | None = None
        self._text = AnswerText(tokenizer)
        self._has_prompt = False

    def put(self, value: Tensor) -> None:
        """Take the prompt, and then one token at a time."""
        if not self._has_prompt:
            self._has_prompt = True
            return
        for token in value.reshape(-1).tolist():
            self.tokens += 1
            self.last = token
            self._hand_out(self._text.add(token))

    def end(self) -> None:
        """Hand out what is left."""
        self._hand_out(self._text.end())

    def _hand_out(self, piece: str) -> None:
        if piece:
            self.queue.put(piece)


class _Stopped(StoppingCriteria):
    """A criterion that ends a generation from another thread."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Return which rows end, bool ``[B]``."""
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


def _pieces(
    generate: Callable[[BaseStreamer, StoppingCriteriaList], object], written: _Written, stopped: _Stopped
) -> Generator[str]:
    """Yield the pieces of a generation, which is stopped when the iterator is closed."""

    def run() -> None:
        ended: BaseException | None = None
        try:
            generate(written, StoppingCriteriaList([stopped]))
        # Whatever it is, the reader gets it.
        except BaseException as error:  # noqa: BLE001
            ended = error
        written.queue.put(ended)

    # A daemon, since a second Ctrl-C may leave it in a long prompt, and the program must end.
    thread = threading.Thread(target=run, name="meteora-answer", daemon=True)
    thread.start()
    try:
        while (piece := written.queue.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        stopped.event.set()
        thread.join()
