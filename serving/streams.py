"""A response that is a stream of events, and frees what it holds however it ends."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from .answers import DONE
from .errors import ApiError


class AnswerStream(EventSourceResponse):
    """The chunks of an answer as events; an error is the last event, in the place of the end.

    Args:
        chunks: of the answer.
        freeing: is closed once it has ended, even if it ended before its first chunk.
        options: of the response.
    """

    def __init__(
        self, chunks: AsyncIterator[dict[str, Any]], freeing: AsyncExitStack, **options: Any
    ) -> None:
        super().__init__(_events(chunks), sep="\n", **options)
        self._freeing = freeing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        async with self._freeing:
            await super().__call__(scope, receive, send)


async def _events(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, str]]:
    try:
        async for chunk in chunks:
            yield {"data": compact_json(chunk)}
        yield {"data": DONE}
    except ApiError as error:
        yield {"data": error.event}


def compact_json(value: Mapping[str, Any]) -> str:
    """Return a value as JSON in as few bytes as possible."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
