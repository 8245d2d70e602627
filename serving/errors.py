"""Errors as clients of OpenAI's interface expect them: a status, and one object with a message in words."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

from starlette.responses import JSONResponse

from ..schemas.errors import MeteoraError

_log = logging.getLogger(__name__)
_SHOWN_CHARACTERS = 100
_KINDS = {401: "authentication_error", 429: "rate_limit_error"}
# A body that was not read whole would be taken for the next request.
_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    408: {"Connection": "close"},
    413: {"Connection": "close"},
}
RETRY_SECONDS = 1


class ApiError(Exception):
    """A request that is refused or failed, with the status and the body of its answer.

    Attributes:
        status: of HTTP.
        message: what was found, what was expected, and what to do.
        param: the field of the request that is at fault.
        code: a word for programs.
        retry_after: seconds after which the same request may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The error as the body of an answer, or as an event of a stream."""
        kind = _KINDS.get(self.status) or ("server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def event(self) -> str:
        """The error as the data of an event in a stream that was begun."""
        return json.dumps(self.body)

    def response(self) -> JSONResponse:
        """Return the answer to the request."""
        headers = {**_HEADERS.get(self.status, {})}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        return JSONResponse(self.body, self.status, headers)


def shown(text: str) -> str:
    """Return a text of a client's for a message: printable and not long."""
    cut = text[:_SHOWN_CHARACTERS] + ("..." if len(text) > _SHOWN_CHARACTERS else "")
    return "".join(character if character.isprintable() else "?" for character in cut)


def unknown_model(model: str, known: Sequence[str]) -> ApiError:
    """Return the error of a model that is not served."""
    listed = ", ".join(f"`{name}`" for name in known[:20])
    return ApiError(
        404,
        f"there is no model `{shown(model)}`, expected one of {listed}; `GET /v1/models` lists all",
        param="model",
        code="model_not_found",
    )


def queue_full(waiting: int, most: int) -> ApiError:
    """Return the error of a request for which there is no room."""
    return ApiError(
        429,
        f"{waiting} prompts wait already, of at most {most}; send the request later",
        code="queue_full",
        retry_after=RETRY_SECONDS,
    )


def too_slow() -> ApiError:
    """Return the error of a request whose time is over."""
    return ApiError(504, "the answer took longer than a request may take", code="timeout")


def failure_of(error: Exception) -> ApiError:
    """Return the error of a prompt on which the model failed; the reason is logged, not sent."""
    if isinstance(error, MeteoraError):
        return ApiError(400, error.message)
    _log.error("error: a prompt failed: %s: %s", type(error).__name__, shown(str(error)))
    return ApiError(500, "the model failed on this prompt", code="model_failed")


def stopping() -> ApiError:
    """Return the error of a request that a server which is shutting down did not begin or finish."""
    return ApiError(
        503,
        "the server is shutting down; send the request again, to another server or in a moment",
        code="shutting_down",
        retry_after=RETRY_SECONDS,
    )
