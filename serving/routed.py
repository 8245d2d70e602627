"""The backend that decides about requests here and has them answered by engines.

It holds no state between requests, so any number of such processes can serve one set of engines.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response

from ..runtime.decider import RequestDecider
from .answers import (
    Choice,
    FinishReason,
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
from .deciding import Decisions
from .engines import Body, EngineLost, Engines, EngineStream
from .errors import ApiError, stopping, too_slow
from .limits import Limits
from .metrics import Metrics
from .names import ModelNames, Target
from .prompts import Prompt, PromptReader
from .requests import ChatForm, GenerationRequest
from .streams import AnswerStream
from .vllm_process import VllmProcess


@dataclass(frozen=True, slots=True)
class _Part:
    """The prompts of a request that one member answers, by their places in it."""

    member: str | None
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request with its decisions.

    Attributes:
        request: as it came.
        prompts: its prompts.
        routed: who answers each.
        began: when it came, by the loop's clock.
        deadline: of its answer.
    """

    request: GenerationRequest
    prompts: Sequence[Prompt]
    routed: Sequence[Routed]
    began: float
    deadline: float

    @property
    def path(self) -> str:
        """The route of an engine."""
        return "/v1/chat/completions" if self.request.is_chat else "/v1/completions"

    @property
    def parts(self) -> list[_Part]:
        """The prompts by who answers them."""
        places: dict[str | None, list[int]] = {}
        for place, routed in enumerate(self.routed):
            places.setdefault(routed.member, []).append(place)
        return [_Part(member, tuple(found)) for member, found in places.items()]

    def body_of(self, part: _Part) -> Body:
        """Return the body of the request to an engine for some of the prompts."""
        form = self.request.form
        body = form.model_dump(
            exclude={"messages", "prompt", "max_completion_tokens", "stream_options"}, exclude_none=True
        )
        # The defaults of OpenAI's interface; an engine may have those of the base.
        body = {"temperature": 1.0, "top_p": 1.0} | body
        # One request has one length for all of its prompts, unless it is a conversation, which is one prompt.
        body["max_tokens"] = min(self.prompts[place].room for place in part.places)
        if isinstance(form, ChatForm):
            body["messages"] = [message.turn for message in form.messages]
        else:
            body["prompt"] = [[*self.prompts[place].ids] for place in part.places]
        if self.request.is_stream:
            body["stream_options"] = {"include_usage": True}
        return lambda engine: body | {"model": engine.name_of(part.member)}


class RoutedBackend:
    """A bundle whose decisions are made here and whose members are models of engines.

    Args:
        decider: decides.
        names: of the models.
        engines: answer.
        limits: of prompts, answers and time.
        metrics: what is counted.
        processes: engines among them that run as long as this backend.
    """

    def __init__(
        self,
        decider: RequestDecider,
        names: ModelNames,
        engines: Engines,
        limits: Limits,
        metrics: Metrics,
        *,
        processes: Sequence[VllmProcess] = (),
    ) -> None:
        self.names = names
        self._engines = engines
        self._limits = limits
        self._metrics = metrics
        self._context = decider.context
        self._prompts = PromptReader(
            decider.tokenizer, decider.encode, decider.vocabulary, limits.max_new_tokens
        )
        self._decisions = Decisions(decider, limits, metrics)
        for engine in engines.engines:
            metrics.watch_engine(
                engine.url,
                # Of this engine, and not of the loop's last.
                lambda engine=engine: engine.is_up,  # type: ignore[misc]
                lambda engine=engine: engine.in_flight,  # type: ignore[misc]
            )
        self._processes = tuple(processes)
        self._is_closed = False
        metrics.running.set_function(lambda: sum(engine.in_flight for engine in engines.engines))

    async def start(self) -> None:
        """Start what is to be started, and ask the engines whether they are there.

        Raises:
            SourceUnreadable: an engine that was started here does not come up.
        """
        # Only conversations wait for it.
        threading.Thread(target=self._prompts.start, daemon=True).start()
        try:
            for process in self._processes:
                await process.start()
            await self._engines.start()
            for process in self._processes:
                await process.until(self._engines.at(process.url).found)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End every request that still runs with an error, and stop."""
        self._is_closed = True
        self._decisions.close()
        await self._engines.close()
        await asyncio.gather(*(process.close() for process in self._processes))
        await asyncio.to_thread(self._prompts.close)

    def health(self) -> Health:
        """Return the engines, and whether there is one that answers."""
        engines = {
            engine.url: {"is_up": engine.is_up, "in_flight": engine.in_flight, "fault": engine.fault}
            for engine in self._engines.engines
        }
        return Health(bool(self._engines.up), {"engines": engines})

    async def respond(self, request: GenerationRequest) -> Response:
        """Answer a request, at once or as a stream.

        Raises:
            ApiError: it does not fit the base, there is no engine or no room for it, or it fails.
        """
        try:
            asked = await self._read(request)
            return await (self._stream(asked) if request.is_stream else self._answer(asked))
        except EngineLost as lost:
            raise self._error_of(lost) from lost

    async def _read(self, request: GenerationRequest) -> _Asked:
        began = asyncio.get_running_loop().time()
        deadline = began + self._limits.answer_seconds
        bounds = [bound for bound in (self._context, self._engines.context) if bound is not None]
        try:
            async with asyncio.timeout_at(deadline):
                context = min(bounds, default=None)
                prompts = await asyncio.to_thread(self._prompts.read, request.form, context=context)
                routed = await self._route(request.target, prompts)
        except TimeoutError as error:
            raise too_slow() from error
        for each in routed:
            self._metrics.count_decision(each)
        return _Asked(request, prompts, routed, began, deadline)

    async def _route(self, target: Target, prompts: Sequence[Prompt]) -> list[Routed]:
        if not target.is_routed:
            forced = Routed(target.member, None, forced=True, scope="prompt")
            return [forced] * len(prompts)
        decisions = await self._decisions.of([prompt.ids for prompt in prompts])
        # An engine gives a request one member, so with a `top_k` above 1 the first serves alone.
        return [Routed.by_decisions([decision], "prompt") for decision in decisions]

    async def _answer(self, asked: _Asked) -> Response:
        choices: dict[int, Choice] = {}
        prompt_tokens = answer_tokens = 0
        parts = asked.parts
        answers = await _all(
            self._engines.ask(asked.path, asked.body_of(part), deadline=asked.deadline) for part in parts
        )
        for part, answer in zip(parts, answers, strict=True):
            for place, choice in _choices_in(part, answer):
                reason = _reason_of(choice) or "stop"
                choices[place] = Choice(_text_of(choice), reason, choice.get("logprobs"))
            counted = _Counted.in_answer(answer)
            prompt_tokens += counted.prompt
            answer_tokens += counted.answer
        if len(choices) < len(asked.prompts):
            raise ApiError(502, "an engine left out a part of the answer", code="engine_failed")
        self._count(prompt_tokens, answer_tokens)
        body = completion(
            asked.request,
            [choices[place] for place in range(len(choices))],
            asked.routed,
            usage(prompt_tokens, answer_tokens),
        )
        return JSONResponse(body, headers=decision_headers(asked.routed))

    async def _stream(self, asked: _Asked) -> Response:
        parts = asked.parts
        streams = await _all(
            self._engines.stream(asked.path, asked.body_of(part), deadline=asked.deadline) for part in parts
        )
        self._metrics.first_token_seconds.observe(asyncio.get_running_loop().time() - asked.began)

        freeing = AsyncExitStack()
        for stream in streams:
            freeing.push_async_callback(stream.close)
        return AnswerStream(
            self._chunks(asked, list(zip(parts, streams, strict=True))),
            freeing,
            headers=decision_headers(asked.routed),
            send_timeout=self._limits.send_seconds,
        )

    async def _chunks(
        self, asked: _Asked, streams: Sequence[tuple[_Part, EngineStream]]
    ) -> AsyncIterator[dict[str, Any]]:
        yield first_chunk(asked.request, asked.routed)
        prompt_tokens = answer_tokens = 0
        try:
            async with aclosing(_merged(streams)) as pieces:
                async for part, piece in pieces:
                    for place, choice in _choices_in(part, piece):
                        if text := _text_of(choice):
                            yield text_chunk(asked.request, place, text)
                        if reason := _reason_of(choice):
                            yield last_chunk(asked.request, place, reason)
                    counted = _Counted.in_answer(piece)
                    prompt_tokens += counted.prompt
                    answer_tokens += counted.answer
        except EngineLost as lost:
            raise self._error_of(lost) from lost
        finally:
            self._count(prompt_tokens, answer_tokens)
        if asked.request.form.includes_usage:
            yield usage_chunk(asked.request, usage(prompt_tokens, answer_tokens))

    def _count(self, prompt_tokens: int, answer_tokens: int) -> None:
        self._metrics.prompt_tokens.inc(prompt_tokens)
        self._metrics.answer_tokens.inc(answer_tokens)

    def _error_of(self, lost: EngineLost) -> ApiError:
        return stopping() if self._is_closed else lost.error


@dataclass(frozen=True, slots=True)
class _Counted:
    """The tokens that an engine counted."""

    prompt: int
    answer: int

    @classmethod
    def in_answer(cls, answer: dict[str, Any]) -> _Counted:
        found = answer.get("usage")
        if not isinstance(found, dict):
            return cls(0, 0)
        return cls(_number(found.get("prompt_tokens")), _number(found.get("completion_tokens")))


def _number(value: Any) -> int:
    return max(value, 0) if isinstance(value, int) else 0


def _choices_in(part: _Part, answer: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Return an engine's choices with the places of their prompts in the request.

    Raises:
        ApiError: they are not choices.
    """
    found = answer.get("choices")
    try:
        return [(part.places[choice.get("index", 0)], choice) for choice in found or ()]
    except (AttributeError, IndexError, TypeError) as error:
        raise ApiError(502, "an engine sent something else than an answer", code="engine_failed") from error


def _text_of(choice: dict[str, Any]) -> str:
    said = choice.get("message") or choice.get("delta")
    text = said.get("content") if isinstance(said, dict) else choice.get("text")
    return text if isinstance(text, str) else ""


def _reason_of(choice: dict[str, Any]) -> FinishReason | None:
    """Return why an answer ended, in the words of this interface; None while it goes on."""
    found = choice.get("finish_reason")
    return None if found is None else "length" if found == "length" else "stop"


async def _all(attempts: Any) -> list[Any]:
    """Return what all of these return; where one fails the others are cancelled."""
    tasks = [asyncio.ensure_future(attempt) for attempt in attempts]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        for stream in ended:
            if isinstance(stream, EngineStream):
                await stream.close()
        raise


async def _merged(
    streams: Sequence[tuple[_Part, EngineStream]],
) -> AsyncGenerator[tuple[_Part, dict[str, Any]], None]:
    """Yield the pieces of all streams as they come."""
    if len(streams) == 1:
        [(part, stream)] = streams
        async for piece in stream.pieces():
            yield part, piece
        return
    queue: asyncio.Queue[tuple[_Part, dict[str, Any]] | Exception | None] = asyncio.Queue(len(streams))

    async def take(part: _Part, stream: EngineStream) -> None:
        try:
            async for piece in stream.pieces():
                await queue.put((part, piece))
        # Whatever it is: one that is not passed on would leave the reader waiting for good.
        except Exception as error:  # noqa: BLE001
            await queue.put(error)
        await queue.put(None)

    tasks = [asyncio.create_task(take(part, stream)) for part, stream in streams]
    try:
        left = len(tasks)
        while left:
            found = await queue.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                left -= 1
            else:
                yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
