"""The HTTP interface: routes, key, limits, errors and metrics, in front of a backend that answers.

Every answer, and every error, has the form that clients of OpenAI's interface expect.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import time
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from pydantic_core import from_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, shown, stopping
from .limits import Limits
from .metrics import CONTENT_TYPE, Metrics
from .names import ModelNames
from .requests import ChatForm, CompletionForm, Form, GenerationRequest, read_request

_GENERATES: dict[str, type[Form]] = {"/v1/chat/completions": ChatForm, "/v1/completions": CompletionForm}
_log = logging.getLogger(__name__)
# A client that sends too much reads the answer only when it has sent all of it.
_MAX_DRAINED_BYTES = 64 << 20
_LEFT = 499


@dataclass(frozen=True, slots=True)
class Health:
    """The state of a backend: whether it can answer, and facts for people."""

    is_ready: bool
    facts: Mapping[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """A way to answer requests.

    Attributes:
        names: of the models that it answers for.
    """

    names: ModelNames

    async def start(self) -> None:
        """Get ready for requests."""
        ...

    async def close(self) -> None:
        """End every request that still runs with an error, and stop."""
        ...

    async def respond(self, request: GenerationRequest) -> Response:
        """Answer a request; it is cancelled when the client leaves before it returns.

        Raises:
            ApiError: the request cannot be answered.
        """
        ...

    def health(self) -> Health:
        """Return the state."""
        ...


class Service:
    """The routes of one server.

    Args:
        backend: what answers.
        limits: what is accepted.
        metrics: what is counted.
        key: what clients must show; None for no key.
    """

    def __init__(self, backend: Backend, *, limits: Limits, metrics: Metrics, key: str | None = None) -> None:
        self.backend = backend
        self.limits = limits
        self.metrics = metrics
        self._key = None if key is None else key.encode()
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._is_draining = False
        self._began = int(time.time())

    def app(self) -> ASGIApp:
        """Return the application."""
        routes = [
            *(Route(path, self._generate, methods=["POST"]) for path in _GENERATES),
            Route("/v1/models", self._models),
            Route("/v1/models/{model:path}", self._model),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
        ]
        handlers: dict[Any, Any] = {
            HTTPException: _answer_http_error,
            ApiError: _answer_error,
            ClientDisconnect: _answer_no_one,
            Exception: _answer_failure,
        }
        app = Starlette(routes=routes, exception_handlers=handlers)
        # A redirect would not have the form of the other answers.
        app.router.redirect_slashes = False
        return _Counted(app, self)

    async def drain(self) -> None:
        """Refuse new requests, let those that run end within the grace, and end the others with an error."""
        self._is_draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self.limits.grace_seconds):
                await self._until_idle()
        await self.backend.close()

    async def _until_idle(self) -> None:
        while self._in_flight:
            self._idle.clear()
            await self._idle.wait()

    def began(self) -> None:
        """Count a request that began."""
        self._in_flight += 1

    def ended(self) -> None:
        """Count a request that ended."""
        self._in_flight -= 1
        if not self._in_flight:
            self._idle.set()

    async def _generate(self, request: Request) -> Response:
        self._check_caller(request)
        if self._is_draining:
            raise stopping()
        body = await _read_json(request, self.limits)
        form = _GENERATES[request.url.path]
        asked = read_request(body, form, self.backend.names, self.limits)
        return await _unless_left(request, self.backend.respond(asked))

    async def _models(self, request: Request) -> Response:
        self._check_caller(request)
        models = [self._describe(model) for model in self.backend.names.models]
        return JSONResponse({"object": "list", "data": models})

    async def _model(self, request: Request) -> Response:
        self._check_caller(request)
        return JSONResponse(self._describe(self.backend.names.find(request.path_params["model"]).model))

    def _describe(self, model: str) -> dict[str, Any]:
        return {"id": model, "object": "model", "created": self._began, "owned_by": "meteora-registry"}

    async def _health(self, request: Request) -> Response:
        health = self.backend.health()
        # A load balancer has no key, and needs no facts such as the addresses of engines.
        facts = health.facts if self._has_key(request) else {}
        is_ready = health.is_ready and not self._is_draining
        status = "ok" if is_ready else "stopping" if self._is_draining else "unavailable"
        return JSONResponse({"status": status, **facts}, 200 if is_ready else 503)

    async def _metrics(self, request: Request) -> Response:
        self._check_caller(request)
        return Response(self.metrics.page(), media_type=CONTENT_TYPE)

    def _check_caller(self, request: Request) -> None:
        if self._key is None:
            _check_host(request)
        elif not self._has_key(request):
            raise ApiError(
                401,
                "the key is missing or wrong; send it as `Authorization: Bearer KEY`",
                code="invalid_api_key",
            )

    def _has_key(self, request: Request) -> bool:
        if self._key is None:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # In constant time, so that the time of an answer gives no part of the key away.
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key)


class _Counted:
    """The application with every request counted, and an answer to whatever goes wrong in it."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = _LEFT
        began = time.monotonic()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._service.began()
        try:
            await self._app(scope, receive, noted)
        # What is wrong with one request must not end in a traceback, nor stop the others.
        except Exception as error:  # noqa: BLE001
            _log.error("error: a request failed: %s: %s", type(error).__name__, shown(str(error)))
        finally:
            self._service.ended()
            self._count(scope, status, time.monotonic() - began)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        # A path that is not a route could be anything.
        path = getattr(scope.get("route"), "path", "other")
        self._service.metrics.requests.labels(path, str(status)).inc()
        if path in _GENERATES and status == 200:
            self._service.metrics.answer_seconds.observe(seconds)


def _check_host(request: Request) -> None:
    """Pass if the host that a client asked for is an address or this machine.

    A page of another site can let the name of its own site lead to this machine, and then asks it as its own
    server, with any content type. The name is in the header.

    Raises:
        ApiError: it is another name.
    """
    stated = request.headers.get("host", "")
    try:
        host = urlsplit(f"//{stated}").hostname or ""
    except ValueError:
        host = stated
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return
    if host in ("", "localhost") or host.endswith(".localhost"):
        return
    raise ApiError(
        403,
        f"the host is `{shown(stated)}`, and without a key the server is asked as `localhost` or by its "
        "address; a proxy can set the header `Host`, or give the server a key",
        code="host_not_allowed",
    )


async def _answer_error(_request: Request, error: ApiError) -> Response:
    return error.response()


async def _answer_no_one(_request: Request, _error: Exception) -> Response:
    # The client has left; the status is for the metrics.
    return Response(status_code=_LEFT)


async def _answer_failure(_request: Request, _error: Exception) -> Response:
    # Starlette raises the error again when this is sent.
    return ApiError(
        500, "the server failed on this request; its output has the reason", code="server_failed"
    ).response()


async def _answer_http_error(request: Request, error: HTTPException) -> Response:
    if error.status_code == 404:
        return ApiError(404, f"there is nothing at `{shown(request.url.path)}`", code="not_found").response()
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        answer = ApiError(
            405, f"`{shown(request.url.path)}` takes {allowed}, found `{shown(request.method)}`"
        ).response()
        answer.headers["Allow"] = allowed
        return answer
    return ApiError(error.status_code, str(error.detail).lower()).response()


async def _read_json(request: Request, limits: Limits) -> Any:
    """Return the value in the body of a request.

    Raises:
        ApiError: it is too large, too slow, or not JSON.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # A page of any site can send a form to this machine; JSON it cannot send without leave.
    if kind != "application/json":
        raise ApiError(
            415, f"the content type is `{shown(kind)}`, expected `application/json`", code="unsupported_media"
        )
    try:
        async with asyncio.timeout(limits.read_seconds):
            body = await _read_body(request, limits.max_body_bytes)
    except TimeoutError as error:
        raise ApiError(
            408, f"the body was not sent within {limits.read_seconds:g} seconds", code="request_timeout"
        ) from error
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(
            400, f"the body is not JSON: {shown(str(error)).lower()}", code="invalid_json"
        ) from error


async def _read_body(request: Request, most: int) -> bytes:
    body, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= most:
            body += chunk
        elif size > _MAX_DRAINED_BYTES:
            break
    if size > most:
        raise ApiError(413, f"the body has more than {most} bytes", code="body_too_large")
    return bytes(body)


async def _unless_left(request: Request, responding: Awaitable[Response]) -> Response:
    """Return a response, or cancel it as soon as the client leaves."""
    answer = asyncio.ensure_future(responding)
    leaving = asyncio.ensure_future(_until_left(request.receive))
    try:
        await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return await answer
    finally:
        for task in (answer, leaving):
            task.cancel()
        await asyncio.gather(answer, leaving, return_exceptions=True)


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
