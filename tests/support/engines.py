"""An engine of OpenAI's interface on loopback, which treats a request by its prompt."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

MEMBERS = ("legal", "medical")
BASE = "org/base"
USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


class FakeEngine:
    """One engine; `kill` ends it as the system ends a process.

    Prompts: `hold` is answered once the engine is let go on, `hold-stream` only to its first word before;
    `break` ends the connection before the answer, `break-stream` after the first word; `fail` is answered
    with 500, `refuse` with 400, `full` with 429, `garbage` with no JSON, `half` with half a character, `nan`
    with a number that JSON does not have, `negative` with such a count, `zipped` with bytes that cannot be
    unpacked, and a number from 301 to 404 with that status; any other prompt with itself.
    """

    def __init__(self, *, members: Sequence[str] = MEMBERS, key: str | None = None) -> None:
        self.members = list(members)
        self.key = key
        self.base = BASE
        self.is_healthy = True
        self.is_odd = False
        self.bodies: list[dict[str, Any]] = []
        self.waits = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)
        self._go_on = asyncio.Event()
        self._server: uvicorn.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def prompts(self) -> list[Any]:
        """The prompts that it was asked."""
        return [_prompt_of(body) for body in self.bodies]

    def start(self) -> None:
        """Listen, on the same port as before if it ran before."""
        routes = [
            Route("/health", self._health),
            Route("/v1/models", self._models),
            Route("/v1/completions", self._answer, methods=["POST"]),
            Route("/v1/chat/completions", self._answer, methods=["POST"]),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes),
            port=self.port,
            log_config=None,
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        is_up = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(is_up,), daemon=True)
        self._thread.start()
        assert is_up.wait(60)

    def _run(self, is_up: threading.Event) -> None:
        async def serve() -> None:
            server = self._server
            assert server is not None
            self._loop = asyncio.get_running_loop()
            self._go_on = asyncio.Event()
            config = server.config
            config.load()
            server.lifespan = config.lifespan_class(config)
            await server.startup()
            self.port = server.servers[0].sockets[0].getsockname()[1]
            is_up.set()
            await server.main_loop()
            for listening in server.servers:
                listening.close()
            for connection in [*server.server_state.connections]:
                connection.transport.abort()
            for task in [*server.server_state.tasks]:
                task.cancel()
            await asyncio.gather(*server.server_state.tasks, return_exceptions=True)

        asyncio.run(serve())

    def kill(self) -> None:
        """End it, with every connection."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join()

    def join(self) -> None:
        """Wait until it ends."""
        if self._thread is not None:
            self._thread.join()

    def go_on(self) -> None:
        """Let it answer what it held back."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._go_on.set)

    async def _health(self, _: Request) -> Response:
        return Response(status_code=200 if self.is_healthy else 503)

    async def _models(self, request: Request) -> Response:
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        if self.is_odd:
            return Response(b"no", headers={"content-encoding": "gzip"})
        cards: list[dict[str, Any]] = [{"id": self.base, "parent": None, "max_model_len": 64}]
        cards.insert(0, {"parent": None})
        cards += [{"id": name, "parent": self.base} for name in self.members]
        return JSONResponse({"object": "list", "data": cards})

    async def _answer(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        prompts = _texts_of(body)
        prompt = prompts[0]
        match prompt:
            case "fail":
                return _error(500, "it broke")
            case "refuse":
                return _error(400, "no such thing")
            case "full":
                return _error(429, "too many")
            case "garbage":
                return Response("<html>", media_type="text/html")
            case "zipped":
                return Response(b"no", headers={"content-encoding": "gzip"})
            case "301" | "401" | "404":
                return _error(int(prompt), "not here")
            case "half":
                return _text(r'{"choices": [{"index": 0, "text": "\ud800"}]}')
            case "nan":
                return _text('{"choices": [{"index": 0, "text": "", "logprobs": NaN}]}')
            case "negative":
                return _text('{"choices": [{"index": 0, "text": "few"}], "usage": {"prompt_tokens": -1}}')
            case "break":
                return StreamingResponse(self._broken())
            case "hold":
                await self._hold()
        if body.get("stream"):
            return StreamingResponse(self._stream(body, prompts), media_type="text/event-stream")
        choices = [_choice(body, text, "stop", place, is_chunk=False) for place, text in enumerate(prompts)]
        return JSONResponse({"id": "e-1", "model": body["model"], "choices": choices, "usage": USAGE})

    async def _hold(self) -> None:
        self.waits.release()
        try:
            await self._go_on.wait()
        finally:
            self.ended.release()

    async def _broken(self) -> AsyncIterator[bytes]:
        raise ConnectionResetError
        yield b""

    async def _stream(self, body: dict[str, Any], prompts: Sequence[str]) -> AsyncIterator[str]:
        for place, prompt in enumerate(prompts):
            first, *rest = prompt.split()
            yield _event(body, [_choice(body, first, None, place, is_chunk=True)])
            if prompt == "break-stream":
                raise ConnectionResetError
            if prompt == "hold-stream":
                await self._hold()
            for word in rest:
                yield _event(body, [_choice(body, f" {word}", None, place, is_chunk=True)])
            yield _event(body, [_choice(body, "", "stop", place, is_chunk=True)])
        if (body.get("stream_options") or {}).get("include_usage"):
            yield _event(body, [], usage=USAGE)
        yield "data: [DONE]\n\n"


def _prompt_of(body: dict[str, Any]) -> Any:
    return body["messages"][-1]["content"] if "messages" in body else body["prompt"]


def _texts_of(body: dict[str, Any]) -> list[str]:
    """Return the prompts of a request, tokens as numbers."""
    found = _prompt_of(body)
    return [found] if isinstance(found, str) else [" ".join(map(str, ids)) for ids in found]


def _text(text: str) -> Response:
    return Response(text, media_type="application/json")


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "x", "param": None, "code": status}}, status)


def _choice(
    body: dict[str, Any], text: str, reason: str | None, place: int, *, is_chunk: bool
) -> dict[str, Any]:
    said: dict[str, Any] = {"text": text}
    if "messages" in body:
        said = {"delta" if is_chunk else "message": {"role": "assistant", "content": text}}
    scores = {"tokens": text.split()} if body.get("echo") else None
    return {"index": place, "finish_reason": reason, "logprobs": scores, **said}


def _event(body: dict[str, Any], choices: list[dict[str, Any]], **more: Any) -> str:
    found = {"id": "e-1", "model": body["model"], "choices": choices, "usage": None} | more
    return f"data: {json.dumps(found)}\n\n"


@contextmanager
def fake_engines(count: int, **options: Any) -> Iterator[list[FakeEngine]]:
    """Run several engines within the block."""
    engines = [FakeEngine(**options) for _ in range(count)]
    try:
        for engine in engines:
            engine.start()
        yield engines
    finally:
        for engine in engines:
            engine.kill()
