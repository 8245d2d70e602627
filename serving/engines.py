"""Engines that answer in the place of this process: their health, the choice among them, and one retry.

An engine is a server of OpenAI's interface, such as vLLM's, that has the base and the bundle's members as
models. Each is asked again and again whether it is there and has them. A request goes to the engine with the
fewest requests, and once to another one if the first is lost before any of the answer came.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2
from pydantic_core import from_json

from ..schemas.errors import UsageError
from .errors import RETRY_SECONDS, ApiError, shown, stopping, too_slow

_log = logging.getLogger(__name__)
_MAX_LISTED = 5
_STREAM_ENDS = "[DONE]"
# The statuses by which an engine refuses a request. Any other, such as that of a wrong key or of a model that
# is gone, is not the client's fault and must not look like it.
_REFUSALS = (400, 413, 422, 429)

Found = TypeVar("Found")
# The fields of a request to an engine, which may have a name of its own for the base.
Body = Callable[["Engine"], Mapping[str, Any]]


class EngineLost(Exception):
    """An engine that ended, or stopped to answer, during a request.

    Attributes:
        url: the engine's.
        reason: what was found.
    """

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(reason)
        self.url = url
        self.reason = reason

    @property
    def error(self) -> ApiError:
        """The error of the request."""
        return ApiError(
            502,
            f"the engine at `{self.url}` was lost while it answered: {self.reason}; send the request again",
            code="engine_lost",
            retry_after=RETRY_SECONDS,
        )


@dataclass(frozen=True, slots=True)
class EngineTimes:
    """The times of health checks and connections, in seconds.

    Attributes:
        between_checks: of an engine that is up.
        least_pause: before an engine that is down is asked again; it doubles each time.
        most_pause: where it ends.
        check: for an answer to a check.
        connect: for a connection.
    """

    between_checks: float = 5.0
    least_pause: float = 0.5
    most_pause: float = 30.0
    check: float = 5.0
    connect: float = 5.0


# An engine that answers no check, but has not closed its connections either, may only be busy.
_CHECKS_UNTIL_LOST = 3


class Engine:
    """One engine.

    Attributes:
        url: of the engine, without the `/v1`.
        in_flight: requests that it has.
        models: the names of its models; empty until it was found.
        base: its name of the plain base.
        context: how many tokens it takes at once; None if it does not state it.
        fault: why it is left out; None while it is up.
        found: is set while it is up.
    """

    def __init__(self, url: str, members: Sequence[str], *, is_starting: bool = False) -> None:
        self.url = url
        self.in_flight = 0
        self.models: frozenset[str] = frozenset()
        self.base = ""
        self.context: int | None = None
        self.fault: str | None = "it was not asked yet"
        self.found = asyncio.Event()
        self._members = tuple(members)
        self._failures = 0
        # One that is starting may well not answer yet.
        self._is_expected = not is_starting
        self._is_reported = False
        self._scopes: set[asyncio.Timeout] = set()
        self._is_lost = False
        self._hurry = asyncio.Event()

    @property
    def is_up(self) -> bool:
        """Whether it gets requests."""
        return self.fault is None

    def name_of(self, member: str | None) -> str:
        """Return the engine's name of a member, or of the plain base for None."""
        return self.base if member is None else member

    def note_found(self, models: Sequence[Mapping[str, Any]]) -> None:
        """Take in the list of its models."""
        models = [model for model in models if isinstance(model.get("id"), str)]
        names = [model["id"] for model in models]
        bases = [
            model for model in models if model.get("parent") is None and model["id"] not in self._members
        ]
        missing = [member for member in self._members if member not in names]
        if missing or not bases:
            lacking = f"no model `{missing[0]}`" if missing else "no model for the plain base"
            has = ", ".join(f"`{shown(name)}`" for name in names[:_MAX_LISTED]) or "none"
            self.leave_out(f"it has {lacking}, of its {len(names)} models the first are {has}")
            return
        self.models, self.base = frozenset(names), bases[0]["id"]
        context = bases[0].get("max_model_len")
        self.context = context if isinstance(context, int) and context > 0 else None
        if self._is_reported:
            _log.warning("the engine at `%s` answers again", self.url)
        self.fault, self._failures, self._is_lost = None, 0, False
        self._is_expected, self._is_reported = True, False
        self.found.set()

    def leave_out(self, reason: str) -> None:
        """Give it no requests until it is found again, and ask it soon."""
        if self._is_expected and not self._is_reported:
            _log.warning("warning: the engine at `%s` is left out: %s", self.url, reason)
            self._is_reported = True
        self.fault = reason
        self.found.clear()
        self.suspect()

    def suspect(self) -> None:
        """Ask it now whether it is there."""
        self._hurry.set()

    def note_failed_check(self, reason: str, *, is_gone: bool = False) -> None:
        """Leave it out; requests that it has are given up if it is gone, or failed several checks."""
        self.leave_out(reason)
        self._failures += 1
        if is_gone or self._failures >= _CHECKS_UNTIL_LOST:
            self.give_up()

    def give_up(self) -> None:
        """End every request that it has."""
        self._is_lost = True
        now = asyncio.get_running_loop().time()
        for scope in self._scopes:
            if not scope.expired():
                scope.reschedule(now)

    @asynccontextmanager
    async def within(self, deadline: float) -> AsyncIterator[None]:
        """End what is awaited in the block at a time of the loop's clock, or when the engine is lost.

        Raises:
            EngineLost: it is lost.
            ApiError: the time is over.
        """
        scope = asyncio.timeout_at(deadline)
        try:
            async with scope:
                self._scopes.add(scope)
                yield
        except TimeoutError as error:
            if self._is_lost:
                raise EngineLost(self.url, self.fault or "it ended") from error
            raise too_slow() from error
        # Of the connection, or of what came over it.
        except httpx2.HTTPError as error:
            reason = _words_of(error)
            if isinstance(error, httpx2.ConnectError):
                self.leave_out(reason)
            # Perhaps the engine closed a connection that had been idle for long.
            self.suspect()
            raise EngineLost(self.url, reason) from error
        finally:
            self._scopes.discard(scope)

    async def pause(self, times: EngineTimes) -> None:
        """Wait until it is time to ask it again."""
        if self.is_up:
            # A request that fails meanwhile ends the wait.
            self._hurry.clear()
            with suppress(TimeoutError):
                # Not `wait_for`: before Python 3.12 it loses a cancellation that comes with the event.
                async with asyncio.timeout(times.between_checks):
                    await self._hurry.wait()
        if not self.is_up:
            doubled = times.least_pause * 2 ** min(self._failures, 30)
            await asyncio.sleep(min(doubled, times.most_pause))

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count a request within the block."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1


class EngineStream:
    """An answer in pieces, of which the first has come.

    Attributes:
        engine: that answers.
        first: the first piece.
    """

    def __init__(
        self, engine: Engine, first: Any, rest: AsyncIterator[Any], close: Callable[[], Awaitable[None]]
    ) -> None:
        self.engine = engine
        self.first = first
        self._rest = rest
        self._close = close

    async def pieces(self) -> AsyncIterator[Any]:
        """Yield every piece, and end the request at the end or when the iteration is left.

        Raises:
            EngineLost: the engine is lost.
            ApiError: the engine reports an error, or the time is over.
        """
        try:
            yield self.first
            async for piece in self._rest:
                yield piece
        finally:
            await self.close()

    async def close(self) -> None:
        """End the request."""
        await self._close()


class Engines:
    """Several engines with the same models.

    Args:
        urls: theirs; `http://host:port`, with or without `/v1`.
        members: the names of the models that each must have, beside the base.
        max_in_flight: requests that one engine is given at a time; further ones are refused.
        key: the engines' key; None without one.
        times: of checks and connections.
        are_starting: whether they were started just now, which is why they may not answer yet.

    Raises:
        UsageError: a URL is not one of an engine, or there is none.
    """

    def __init__(
        self,
        urls: Iterable[str],
        members: Sequence[str],
        *,
        max_in_flight: int,
        key: str | None = None,
        times: EngineTimes | None = None,
        are_starting: bool = False,
    ) -> None:
        # Without repeats: an engine would get twice its share.
        self.engines = [
            Engine(url, members, is_starting=are_starting)
            for url in dict.fromkeys(map(read_engine_url, urls))
        ]
        if not self.engines:
            raise UsageError("there is no engine, expected the URL of at least one")
        self._max_in_flight = max_in_flight
        self._times = times or EngineTimes()
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._client: httpx2.AsyncClient | None = None
        self._watching: list[asyncio.Task[None]] = []
        self._is_closed = False

    async def start(self) -> None:
        """Ask every engine once, and from then on again and again."""
        self._client = httpx2.AsyncClient(
            headers=self._headers,
            # Each request has a deadline of its own; an answer that comes whole comes at its end.
            timeout=httpx2.Timeout(None, connect=self._times.connect),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64),
            # No proxy and no `.netrc`: the engines are the operator's own.
            trust_env=False,
        )
        await asyncio.gather(*(self._check(engine) for engine in self.engines))
        self._watching = [asyncio.create_task(self._watch(engine)) for engine in self.engines]

    async def close(self) -> None:
        """End every request, the checks and the connections."""
        self._is_closed = True
        for engine in self.engines:
            engine.give_up()
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    def at(self, url: str) -> Engine:
        """Return the engine with this URL."""
        return next(engine for engine in self.engines if engine.url == url)

    @property
    def up(self) -> list[Engine]:
        """The engines that get requests."""
        return [engine for engine in self.engines if engine.is_up]

    @property
    def context(self) -> int | None:
        """How many tokens every engine takes at once, as far as they state it."""
        return min((engine.context for engine in self.up if engine.context), default=None)

    async def ask(self, path: str, body: Body, *, deadline: float) -> dict[str, Any]:
        """Return the whole answer of an engine to a request.

        Args:
            path: behind the URL of the engine.
            body: the fields of the request.
            deadline: the time of the loop's clock at which the answer must be whole.

        Raises:
            EngineLost: an engine was lost during the request, and no other could take it.
            ApiError: no engine is up, or the engine refuses the request, or the time is over.
        """

        async def attempt(engine: Engine) -> dict[str, Any]:
            with engine.busy():
                async with engine.within(deadline):
                    response = await self._running.post(engine.url + path, json=body(engine))
                return _read_answer(engine, response.status_code, response.content)

        return await self._tried(attempt)

    async def stream(self, path: str, body: Body, *, deadline: float) -> EngineStream:
        """Return the answer of an engine in pieces, once the first has come; otherwise as `ask`."""

        async def attempt(engine: Engine) -> EngineStream:
            pieces = self._pieces(engine, path, body(engine), deadline)
            try:
                first = await anext(pieces)
            except StopAsyncIteration:
                raise EngineLost(engine.url, "it ended the answer before the first token") from None
            return EngineStream(engine, first, pieces, pieces.aclose)

        return await self._tried(attempt)

    async def _pieces(
        self, engine: Engine, path: str, body: Mapping[str, Any], deadline: float
    ) -> AsyncGenerator[Any, None]:
        with engine.busy():
            request = self._running.build_request("POST", engine.url + path, json=body)
            async with engine.within(deadline):
                response = await self._running.send(request, stream=True)
            try:
                if response.status_code != httpx2.codes.OK:
                    async with engine.within(deadline):
                        await response.aread()
                    _read_answer(engine, response.status_code, response.content)
                events = aiter(httpx2.EventSource(response))
                while True:
                    async with engine.within(deadline):
                        event = await anext(events, None)
                    if event is None:
                        raise EngineLost(engine.url, "it ended the answer in the middle")
                    if event.data == _STREAM_ENDS:
                        return
                    yield _read_piece(engine, event.data)
            finally:
                await response.aclose()

    @property
    def _running(self) -> httpx2.AsyncClient:
        if self._client is None:
            raise RuntimeError("the engines were not started")
        return self._client

    async def _tried(self, attempt: Callable[[Engine], Awaitable[Found]]) -> Found:
        """Return what an attempt at an engine returns, or one at another if that engine is lost in it."""
        engine = self._choose(None)
        try:
            return await attempt(engine)
        except EngineLost as lost:
            try:
                other = self._choose(engine)
            except ApiError:
                raise lost from None
            _log.info("a request that `%s` had is given to `%s`", engine.url, other.url)
            return await attempt(other)

    def _choose(self, before: Engine | None) -> Engine:
        """Return the engine with the fewest requests, and if there is a choice not the one before."""
        if self._is_closed:
            raise stopping()
        up = self.up
        if not up:
            raise self._none_is_up()
        engine = min(up, key=lambda each: (each is before, each.in_flight))
        if engine.in_flight >= self._max_in_flight:
            raise ApiError(
                429,
                f"every engine has {self._max_in_flight} requests already; send the request again later",
                code="queue_full",
                retry_after=RETRY_SECONDS,
            )
        return engine

    def _none_is_up(self) -> ApiError:
        faults = "; ".join(f"`{engine.url}`: {engine.fault}" for engine in self.engines[:_MAX_LISTED])
        return ApiError(503, f"no engine is ready: {faults}", code="no_engine", retry_after=RETRY_SECONDS)

    async def _watch(self, engine: Engine) -> None:
        while True:
            await engine.pause(self._times)
            await self._check(engine)

    async def _check(self, engine: Engine) -> None:
        try:
            async with asyncio.timeout(self._times.check):
                health = await self._running.get(f"{engine.url}/health")
                if health.status_code != httpx2.codes.OK:
                    engine.note_failed_check(f"`/health` answers with status {health.status_code}")
                    return
                listed = await self._running.get(f"{engine.url}/v1/models")
        except TimeoutError:
            engine.note_failed_check(f"it answered no check within {self._times.check:g} seconds")
            return
        except httpx2.HTTPError as error:
            engine.note_failed_check(_words_of(error), is_gone=isinstance(error, httpx2.ConnectError))
            return
        models = _read_models(listed)
        if models is None:
            engine.note_failed_check(
                f"`/v1/models` answers with status {listed.status_code} and no list of models"
            )
        else:
            engine.note_found(models)


def read_engine_url(text: str) -> str:
    """Return the URL of an engine without a `/v1` at its end.

    Raises:
        UsageError: it is not one of HTTP, or has more than host, port and path.
    """
    hint = "give it as `http://host:port`; the engines' key comes from METEORA_ENGINE_KEY"
    try:
        url = httpx2.URL(text)
    except (httpx2.InvalidURL, ValueError) as error:
        raise UsageError(f"the engine's URL `{shown(text)}` cannot be read", hint=hint) from error
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError(
            f"the engine's URL is `{shown(text)}`, expected `http://` or `https://` and a host", hint=hint
        )
    if url.userinfo or url.query or url.fragment:
        # Not shown: it may hold a password.
        raise UsageError(
            "an engine's URL has a user, a query or a fragment, expected host, port and path", hint=hint
        )
    return str(url).rstrip("/").removesuffix("/v1")


def _read_answer(engine: Engine, status: int, content: bytes) -> dict[str, Any]:
    """Return the object in an engine's answer.

    Raises:
        EngineLost: it failed, does not take this process's key or model, or the answer is not an object.
        ApiError: it refuses the request.
    """
    found = _read_json(content)
    if status in _REFUSALS:
        raise _refusal(status, found)
    if status != httpx2.codes.OK:
        engine.suspect()
        raise EngineLost(engine.url, f"it answers with status {status}: {_message_in(found)}")
    if not isinstance(found, dict):
        raise EngineLost(engine.url, "its answer is not a JSON object")
    return found


def _read_json(data: bytes | str) -> Any:
    """Return a value that can be passed on as JSON; None if there is none."""
    try:
        # Python's own reader also takes NaN and halves of characters, which no answer can hold.
        return from_json(data, allow_inf_nan=False)
    except ValueError:
        return None


def _read_piece(engine: Engine, data: str) -> Any:
    """Return the value in an event of a stream.

    Raises:
        EngineLost: it is not an object.
        ApiError: it is an error.
    """
    found = _read_json(data)
    if not isinstance(found, dict):
        raise EngineLost(engine.url, "a piece of its answer is not a JSON object")
    if "error" in found:
        code = found["error"].get("code") if isinstance(found["error"], dict) else None
        raise _refusal(code if code in _REFUSALS else 500, found)
    return found


def _refusal(status: int, found: Any) -> ApiError:
    error = found.get("error") if isinstance(found, dict) else None
    param = error.get("param") if isinstance(error, dict) else None
    return ApiError(
        status,
        f"the engine refuses the request: {_message_in(found)}",
        param=param if isinstance(param, str) else None,
        code="engine_refused",
        retry_after=RETRY_SECONDS if status == httpx2.codes.TOO_MANY_REQUESTS else None,
    )


def _message_in(found: Any) -> str:
    error = found.get("error") if isinstance(found, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return shown(message) if isinstance(message, str) else "it gives no reason"


def _read_models(response: httpx2.Response) -> list[dict[str, Any]] | None:
    found = _read_json(response.content)
    models = found.get("data") if isinstance(found, dict) else None
    if not response.is_success or not isinstance(models, list):
        return None
    return [model for model in models if isinstance(model, dict)]


def _words_of(error: Exception) -> str:
    return " ".join(str(error).split()).lower()[:200] or type(error).__name__
