"""Errors of the Hub, in our words: the one place that turns huggingface_hub's errors into ours.

The order matters: a gated repository is a kind of missing one there, and inside a download a busy Hub
comes out as a file that is not in the cache; the cause behind it is what counts. No message holds a
token or the signature of a storage address: they are made of facts, and both are removed from the
server's own text.
"""

from __future__ import annotations

import errno
import logging
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from ...schemas.errors import (
    HubConflict,
    HubMismatch,
    HubNotFound,
    HubRefused,
    HubUnavailable,
    MeteoraError,
    SourceUnreadable,
    UsageError,
)
from .. import secrets
from ..secrets import remember_secret
from .rate import AnswerRefused, AnswerTooSlow

# Whatever a call of huggingface_hub may raise. It takes answers apart without a look at their shape, so a
# malformed one ends as any of these: a list in place of an object is an AttributeError, a commit that is
# missing an AssertionError, an upload that was not asked for a NameError.
FOREIGN_ERRORS = (
    AnswerRefused,
    httpx2.HTTPError,
    httpx2.InvalidURL,
    RevisionResolutionError,
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    NameError,
    AssertionError,
    ArithmeticError,
)
BUSY = 429
_TRANSIENT = frozenset({408, BUSY, 500, 502, 503, 504})
_MAX_SERVER_TEXT = 300
# What a terminal would act on, also the characters that change the direction of text. Line ends stay.
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_AGAIN = "run the same command again later"


@dataclass(frozen=True, slots=True)
class Subject:
    """The subject of a request, for messages."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"`{self.repository}{at}`"


def translate(error: BaseException, subject: Subject) -> MeteoraError:
    """Return the error to raise in place of a foreign one."""
    cause = root_of(error)
    if isinstance(cause, HfHubHTTPError):
        return _describe_answer(cause, subject)
    match cause:
        case MeteoraError():
            return cause
        case AnswerTooSlow():
            return HubUnavailable(f"the Hub's answer about {subject} came too slowly: {cause}", hint=_AGAIN)
        case AnswerRefused():
            return HubMismatch(
                f"the Hub's answer about {subject} was refused: {hide_secrets(str(cause))}",
                hint="check HF_ENDPOINT; the Hub or the mirror there is damaged, or is not to be trusted",
            )
        case OfflineModeIsEnabled() | LocalEntryNotFoundError() | RevisionResolutionError():
            return HubUnavailable(
                f"{subject} is not in the local cache, and offline mode is on", hint="unset HF_HUB_OFFLINE"
            )
        case HFValidationError():
            return UsageError(f"{subject} is not a repository name that the Hub knows, expected `org/name`")
        case ValueError() if str(cause).startswith("Invalid metadata in README.md"):
            return HubRefused(
                f"the Hub does not accept the front matter of `README.md`: {_words_of(cause)}",
                hint="correct it in the adapter's own README.md, and add that as a new version",
            )
        case httpx2.HTTPError() | httpx2.InvalidURL():
            return HubUnavailable(
                f"the Hub at `{hide_secrets(constants.ENDPOINT)}` cannot be reached for {subject}: "
                f"{_words_of(cause)}",
                hint=_AGAIN,
            )
        case OSError() if cause.errno is not None:
            return _describe_disk(cause)
        case OSError():
            return HubMismatch(
                f"a file of {subject} came incomplete and was not kept: {_words_of(cause)}", hint=_AGAIN
            )
        case _:
            return HubUnavailable(
                f"the Hub's answer about {subject} cannot be understood: {_words_of(cause)}",
                hint="check HF_ENDPOINT, and run it again",
            )


def root_of(error: BaseException) -> BaseException:
    """Return the original cause, below the errors that only wrap it."""
    wrappers = (FileNotFoundError, RevisionResolutionError, RuntimeError)
    while isinstance(error, wrappers) and error.__cause__ is not None:
        error = error.__cause__
    return error


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status behind an error; None if there was no answer."""
    cause = root_of(error)
    return cause.response.status_code if isinstance(cause, HfHubHTTPError) else None


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed a little later.

    What comes out of a download as a wrapped error was tried again by huggingface_hub already.
    """
    if isinstance(error, LocalEntryNotFoundError):
        return False
    if isinstance(error, httpx2.TransportError):
        return not isinstance(error, (httpx2.ProxyError, httpx2.UnsupportedProtocol))
    return status_of(error) in _TRANSIENT


def asked_pause_seconds(error: BaseException) -> float | None:
    """Return how long the server asks to wait (``Retry-After``, in seconds or as a date), or None."""
    cause = root_of(error)
    if not isinstance(cause, HfHubHTTPError):
        return None
    text = cause.response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def hide_secrets(text: str) -> str:
    """Return text without tokens, this user's own among them, and without the secrets of URLs."""
    remember_secret(get_token())
    return secrets.hide_secrets(text)


class SecretFilter(logging.Filter):
    """Hides secrets in what huggingface_hub logs, and what a terminal would act on.

    It names addresses, which may carry a signature, and repeats warnings of the server word for word.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record; it is always kept."""
        text = hide_secrets(record.getMessage())
        record.msg, record.args = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text), ()
        return True


def _describe_answer(error: HfHubHTTPError, subject: Subject) -> MeteoraError:
    status = error.response.status_code
    name = f"`{subject.repository}`"
    match error:
        case GatedRepoError():
            return HubRefused(
                f"{name} is gated: its owner decides who may read it ({status})",
                hint=f"ask for access on its page, then {_LOG_IN}",
            )
        case RevisionNotFoundError():
            return HubRefused(f"{name} has no revision `{subject.revision or 'main'}` ({status})")
        case RemoteEntryNotFoundError():
            return HubRefused(f"{name} lacks a file that its list of files has ({status})", hint=_AGAIN)
        case RepositoryNotFoundError():
            return HubNotFound(
                f"the Hub has no repository {name}, or none that you may see ({status})",
                hint=f"check the spelling; for a private one {_LOG_IN}"
                if get_token() is None
                else "check the spelling, and that the token may read it",
            )
        case DisabledRepoError():
            return HubRefused(f"the Hub has disabled {name} ({status})")
    return _describe_status(error, status, subject)


def _describe_status(error: HfHubHTTPError, status: int, subject: Subject) -> MeteoraError:
    if status == 401:
        return HubRefused(f"the Hub does not accept the token for {subject} (401)", hint=_LOG_IN)
    if status == 403:
        return HubRefused(
            f"the Hub does not allow this for {subject} (403)",
            hint="the token must have the right to do it; see `hf auth whoami`",
        )
    if status == 409:
        return HubConflict(f"another operation on {subject} is under way (409)", hint=_AGAIN)
    if status == 412:
        return HubConflict(
            f"{subject} was changed by another push in between (412); nothing was committed", hint=_AGAIN
        )
    if status == BUSY:
        pause = asked_pause_seconds(error)
        asked = "" if pause is None else f" and asks to wait {pause:.0f} seconds"
        return HubUnavailable(
            f"the Hub limits how often it may be asked (429){asked}; {subject} was not fetched or changed",
            hint=f"{_AGAIN}; a token raises the limit",
        )
    if status >= 500:
        return HubUnavailable(f"the Hub failed for {subject} ({status})", hint=_AGAIN)
    reason = hide_secrets(error.server_message or "")[:_MAX_SERVER_TEXT]
    return HubRefused(f"the Hub refused the request for {subject} ({status}): {reason or 'without a reason'}")


def _describe_disk(error: OSError) -> MeteoraError:
    place = f" `{error.filename}`" if error.filename else ""
    hint = "make room and run it again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    return SourceUnreadable(f"cannot write{place}: {error.strerror}", hint=hint)


def _words_of(error: BaseException) -> str:
    text = hide_secrets(" ".join(str(error).split()))[:_MAX_SERVER_TEXT]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
