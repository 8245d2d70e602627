"""The backend that runs a bundle in this process: prompts are gathered into batches, several at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, nullcontext
from typing import Any, cast

import torch
from starlette.responses import JSONResponse, Response
from transformers import BatchEncoding, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

from ..runtime.active_bundles import UNCHANGED, called_with
from ..runtime.base_model import context_of
from ..runtime.base_modules import vocabulary_of
from ..runtime.loaded_bundle import LoadedBundle, end_tokens, generate_ids, place
from ..runtime.routing_record import RoutingRecord
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
from .errors import ApiError, failure_of, stopping
from .limits import Limits
from .metrics import Metrics
from .names import ModelNames, Target
from .prompts import Prompt, PromptReader
from .requests import ChatForm, GenerationRequest
from .rows import Began, Ended, Event, Events, Row, Sampling
from .scoring import score
from .steps import Account, RowSampling, RowsEnd
from .streams import AnswerStream
from .waiting import WaitingRows

# A thread ends with the pass that it computes.
_JOIN_SECONDS = 30.0


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
        self._loaded = loaded
        self._limits = limits
        self._metrics = metrics
        self._waiting = WaitingRows(limits, metrics)
        self._running: set[Row] = set()
        metrics.running.set_function(lambda: len(self._running))
        self._is_closed = False
        self._context = context_of(loaded.model.config)
        base = cast("PreTrainedModel", loaded.model.get_base_model())
        self._prompts = PromptReader(
            loaded.tokenizer, self._encode, vocabulary_of(base), limits.max_new_tokens
        )
        self._threads = [
            threading.Thread(target=self._work, name=f"batch-{number}", daemon=True)
            for number in range(limits.batches)
        ]

    async def start(self) -> None:
        """Start the threads; the process that writes conversations follows, and only these wait for it."""
        for thread in (*self._threads, threading.Thread(target=self._prompts.start, daemon=True)):
            thread.start()

    async def close(self) -> None:
        """End the requests that still wait or run with an error, and stop the threads."""
        self._is_closed = True
        _stop((*self._waiting.close(), *self._running.copy()))
        await asyncio.to_thread(self._end_threads)

    def _end_threads(self) -> None:
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)
        self._prompts.close()

    def health(self) -> Health:
        """Return how many prompts wait and run; without a thread there are no answers."""
        is_ready = all(thread.is_alive() for thread in self._threads)
        return Health(is_ready, {"waiting": len(self._waiting), "running": len(self._running)})

    async def respond(self, request: GenerationRequest) -> Response:
        """Answer a request, at once or as a stream.

        Raises:
            ApiError: it does not fit the model, there is no room for it, or it fails.
        """
        work = _Work(request, self._limits.answer_seconds)
        prompts = await asyncio.to_thread(self._prompts.read, request.form, context=self._context)
        work.rows = _rows_of(request, prompts, work.events)
        self._waiting.put(work.rows)
        async with AsyncExitStack() as freeing:
            freeing.callback(self._cancel, work.rows)
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

    def _cancel(self, rows: Sequence[Row]) -> None:
        for row in rows:
            row.is_cancelled = True
        self._waiting.discard(rows)

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
            raise ApiError(
                504, f"the answer took more than {self._limits.answer_seconds:g} seconds", code="timeout"
            ) from error
        if isinstance(event, Began):
            self._metrics.first_token_seconds.observe(time.monotonic() - work.began)
        return place, event

    def _work(self) -> None:
        while rows := self._waiting.take():
            self._running.update(rows)
            if self._is_closed:
                # Between the queue and the set, where `close` does not see them.
                _stop(rows)
            self._run_safely(rows)
            self._running.difference_update(rows)

    def _run_safely(self, rows: Sequence[Row]) -> None:
        """Answer a batch; one that fails is answered row by row, so that a row's fault is its own."""
        try:
            self._run(rows)
        # Nor must it end the thread that answers the next batch.
        except Exception as error:  # noqa: BLE001
            if len(rows) == 1 or any(row.has_begun for row in rows):
                failure = failure_of(error)
                for row in rows:
                    row.emit(failure)
            else:
                for row in rows:
                    self._run_safely([row])

    def _run(self, rows: Sequence[Row]) -> None:
        if rows[0].top_logprobs is not None:
            for row in rows:
                self._score(row)
            return
        model = self._loaded.model
        batch = self._batch_of(rows)
        self._metrics.prompt_tokens.inc(sum(len(row.ids) for row in rows))
        with self._as_asked(rows[0].target) as record:
            account = Account(rows, self._scope, record, batch["attention_mask"].bool().cpu())
            generate_ids(
                self._loaded,
                batch,
                max_new_tokens=max(row.max_new_tokens for row in rows),
                stopping_criteria=StoppingCriteriaList(
                    [
                        RowsEnd(
                            rows,
                            self._loaded.tokenizer,
                            account,
                            self._metrics,
                            end_tokens=end_tokens(model.generation_config),
                        )
                    ]
                ),
                logits_processor=LogitsProcessorList([RowSampling(rows, batch["input_ids"].device)]),
            )

    def _score(self, row: Row) -> None:
        """Answer with the scores of the prompt's tokens; alone, for they are as large as the vocabulary."""
        if row.is_cancelled:
            return
        self._metrics.prompt_tokens.inc(len(row.ids))
        with self._as_asked(row.target) as record:
            account = Account([row], self._scope, record, torch.ones(1, len(row.ids), dtype=torch.bool))
            scores = score(self._loaded, row)
            account.note_step([True])
        routed = account.routed(0)
        self._metrics.count_decision(routed)
        row.emit(Began(routed))
        row.emit("".join(scores.tokens))
        row.emit(Ended("length", row.max_new_tokens, routed, scores.field))

    @property
    def _scope(self) -> Any:
        return self._loaded.config.gate.scope

    @contextmanager
    def _as_asked(self, target: Target) -> Iterator[RoutingRecord | None]:
        """Let the target answer the calls of this thread; what the bundle chooses itself is recorded."""
        member = UNCHANGED if target.is_routed else target.member
        recording = self._loaded.routing() if target.is_routed else nullcontext()
        with called_with(self._loaded.model, member=member, changes={}), recording as record:
            yield record

    def _batch_of(self, rows: Sequence[Row]) -> BatchEncoding:
        widest = max(len(row.ids) for row in rows)
        pad = self._loaded.tokenizer.pad_token_id or 0
        ids = [[pad] * (widest - len(row.ids)) + [*row.ids] for row in rows]
        mask = [[0] * (widest - len(row.ids)) + [1] * len(row.ids) for row in rows]
        batch = BatchEncoding({"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)})
        return place(batch, self._loaded.model)


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


def _stop(rows: Iterable[Row]) -> None:
    for row in rows:
        row.emit(stopping())
        row.is_cancelled = True
