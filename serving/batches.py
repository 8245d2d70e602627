"""The backend that runs a bundle in this process: prompts are gathered into batches, several at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from starlette.responses import JSONResponse, Response

from ..runtime.base_model import context_of
from ..runtime.base_modules import vocabulary_of
from ..runtime.loaded_bundle import LoadedBundle
from .answers import (
    Choice,
    Routed,
    completion,
    decision_headers,
    first_chunk,
    last_chunk,
    text_chunk,
    usage,
    usage_chunk,
)
from .app import Health
from .errors import too_slow
from .limits import Limits
from .metrics import Metrics
from .names import ModelNames
from .prompts import Prompt, PromptReader
from .requests import ChatForm, GenerationRequest
from .rows import Began, Ended, Event, Events, Row, Sampling
from .runner import BatchRunner
from .streams import AnswerStream


class LocalBackend:
    """A bundle on its base, answering in threads of this process.

    Args:
        loaded: the bundle.
        names: of its models.
        limits: of batches, queue, answers and time.
        metrics: what is counted.
    """

    def __init__(self, loaded: LoadedBundle, names: ModelNames, limits: Limits, metrics: Metrics) -> None:
        self.names = names
        self._limits = limits
        self._metrics = metrics
        self._context = context_of(loaded.model.config)
        self._loaded = loaded
        self._prompts = PromptReader(
            loaded.tokenizer,
            self._encode,
            vocabulary_of(loaded.model),
            limits.max_new_tokens,
        )
        self._runner = BatchRunner(loaded, limits, metrics)

    async def start(self) -> None:
        """Start the threads; the process that writes conversations follows, and only these wait for it."""
        self._runner.start()
        threading.Thread(target=self._prompts.start, daemon=True).start()

    async def close(self) -> None:
        """End the requests that still wait or run with an error, and stop the threads."""
        await asyncio.to_thread(self._runner.close)
        await asyncio.to_thread(self._prompts.close)

    def health(self) -> Health:
        """Return how many prompts wait and run; without its threads there are no answers."""
        return Health(
            self._runner.is_alive, {"waiting": self._runner.waiting, "running": self._runner.running}
        )

    async def respond(self, request: GenerationRequest) -> Response:
        """Answer a request, at once or as a stream.

        Raises:
            ApiError: it does not fit the model, there is no room for it, or it fails.
        """
        work = _Work(request, self._limits.answer_seconds)
        prompts = await asyncio.to_thread(self._prompts.read, request.form, context=self._context)
        work.rows = _rows_of(request, prompts, work.events)
        self._runner.put(work.rows)
        async with AsyncExitStack() as freeing:
            freeing.callback(self._runner.cancel, work.rows)
            if not request.is_stream:
                return await self._answer(work)
            begun = await self._begin(work)
            return AnswerStream(
                self._chunks(work, begun),
                freeing.pop_all(),
                headers=decision_headers(begun.routed),
                send_timeout=self._limits.send_seconds,
            )

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._loaded.encode(text, verbose=False)["input_ids"][0].tolist()
        return ids

    async def _answer(self, work: _Work) -> Response:
        count = len(work.rows)
        texts = [""] * count
        ends: dict[int, Ended] = {}
        while len(ends) < count:
            place, event = await self._next(work)
            if isinstance(event, Ended):
                ends[place] = event
            elif isinstance(event, str):
                texts[place] += event
        ordered = [ends[place] for place in range(count)]
        routed = [end.routed for end in ordered]
        choices = [Choice(text, end.reason, end.scores) for text, end in zip(texts, ordered, strict=True)]
        counted = work.usage(sum(end.tokens for end in ordered))
        body = completion(work.request, choices, routed, counted)
        return JSONResponse(body, headers=decision_headers(routed))

    async def _begin(self, work: _Work) -> _Begun:
        """Wait until every prompt has its first token, and with it a decision."""
        routed: dict[int, Routed] = {}
        early: list[tuple[int, Event]] = []
        while len(routed) < len(work.rows):
            place, event = await self._next(work)
            if isinstance(event, Began):
                routed[place] = event.routed
            else:
                early.append((place, event))
        return _Begun([routed[place] for place in range(len(work.rows))], early)

    async def _chunks(self, work: _Work, begun: _Begun) -> AsyncIterator[dict[str, Any]]:
        yield first_chunk(work.request, begun.routed)
        early = iter(begun.early)
        left, tokens = len(work.rows), 0
        while left:
            place, event = next(early, None) or await self._next(work)
            if isinstance(event, str):
                yield text_chunk(work.request, place, event)
            elif isinstance(event, Ended):
                left -= 1
                tokens += event.tokens
                yield last_chunk(work.request, place, event.reason)
        if work.request.form.includes_usage:
            yield usage_chunk(work.request, work.usage(tokens))

    async def _next(self, work: _Work) -> tuple[int, Event]:
        try:
            place, event = await work.events.get(work.seconds_left)
        except TimeoutError as error:
            raise too_slow() from error
        if isinstance(event, Began):
            self._metrics.first_token_seconds.observe(time.monotonic() - work.began)
        return place, event


class _Work:
    """One request while it is answered."""

    def __init__(self, request: GenerationRequest, seconds: float) -> None:
        self.request = request
        self.rows: list[Row] = []
        self.events = Events()
        self.began = time.monotonic()
        self._deadline = self.began + seconds

    @property
    def seconds_left(self) -> float:
        return max(self._deadline - time.monotonic(), 0)

    def usage(self, answer_tokens: int) -> dict[str, int]:
        return usage(sum(len(row.ids) for row in self.rows), answer_tokens)


class _Begun:
    """The decisions for a request that has its first tokens, and what else came until then."""

    def __init__(self, routed: list[Routed], early: list[tuple[int, Event]]) -> None:
        self.routed = routed
        self.early = early


def _rows_of(request: GenerationRequest, prompts: Sequence[Prompt], events: Events) -> list[Row]:
    form = request.form
    sampling = Sampling(
        1.0 if form.temperature is None else form.temperature,
        1.0 if form.top_p is None else form.top_p,
        form.seed,
    )
    top_logprobs = None if isinstance(form, ChatForm) else form.logprobs
    return [
        Row(place, request.target, prompt.ids, prompt.room, form.stops, sampling, events, top_logprobs)
        for place, prompt in enumerate(prompts)
    ]
