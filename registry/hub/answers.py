"""Bounds and checks on every answer of the Hub, applied in the HTTP client that huggingface_hub uses.

The Hub, or a mirror in its place, is not trusted. huggingface_hub makes file names of what it calls a commit
or an ETag, and reads bodies to their end; so answers are checked below it, before it sees them. Whatever it
asks for, now or in a later release, passes through here:

- a commit is 40 lower-case hexadecimal digits, an ETag is one plain word, a size is a number;
- a body has no more bytes than the listed file, or than an answer may have, and is not compressed;
- bytes come at a minimum rate (``rate``), and a listing has a bounded number of pages;
- the token is sent to the Hub that HF_ENDPOINT names and to no other host.

The client is huggingface_hub's own, one for the process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import httpx2
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # exported at run time only
    hf_raise_for_status,
    parse_ratelimit_headers,
)

# Not exported, but the only place that has the hook for offline mode and the ids of requests.
from huggingface_hub.utils._http import default_client_factory

from .rate import AnswerRefused, MeteredBackend, MeteredStream

# All pages of a listing together; 10 000 files take about 5 MB. The worst JSON of this size takes 400 MB of
# memory.
MAX_ANSWER_BYTES = 16 << 20
# The text of an error is shortened anyway.
MAX_ERROR_BYTES = 64 << 10
# The Hub lists 1000 files to a page, and more than 10 000 files are refused.
MAX_PAGES = 200
MAX_PAUSE_SECONDS = 300.0
# How long nothing at all may come. A commit of many large files is answered when all were looked at.
_READ_SECONDS = 60.0
_WRITE_ANSWER_SECONDS = 300.0
_CONNECT_SECONDS = 30.0

_COMMIT = re.compile(r"[0-9a-f]{40}")
_OBJECT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_ETAG = re.compile(r"[0-9A-Za-z_-][0-9A-Za-z._-]{0,127}")
_SIZE = re.compile(r"[0-9]{1,15}")
_RANGE = re.compile(r"bytes=([0-9]+)-([0-9]*)")
_CONTENT_RANGE = re.compile(r"bytes [0-9]{1,15}-[0-9]{1,15}/[0-9]{1,15}")
_COMPRESSED = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd"})
_COMMIT_KEYS = frozenset({"sha", "commitOid", "targetCommit"})
_SHOWN = 80


@dataclass(slots=True)
class _Exchange:
    """One call of huggingface_hub, with all the requests that it makes.

    ``commit`` and ``size_bytes`` are those of the file that is fetched; None where the answers are JSON.
    """

    commit: str | None
    size_bytes: int | None
    remaining_bytes: int
    pages: int = 0


_exchange: ContextVar[_Exchange | None] = ContextVar("exchange", default=None)


def guard_client() -> None:
    """Make huggingface_hub check every answer, and fetch and upload nothing past that check."""
    set_client_factory(_make_client)
    # Its other way of transfer is a library of its own with an HTTP client of its own, which none of the
    # checks would reach.
    constants.HF_HUB_DISABLE_XET = True


@contextmanager
def expect_json() -> Iterator[None]:
    """Bound the answers within to what a call for JSON may take, all pages together."""
    with _expect(_Exchange(None, None, MAX_ANSWER_BYTES)):
        yield


@contextmanager
def expect_file(commit: str, size_bytes: int) -> Iterator[None]:
    """Bound the answers within to the bytes of one file of a commit."""
    # A download that breaks goes on where it broke, but for at most 10 MiB that were not yet written; a
    # server that knows no ranges starts again. Three times the size is enough for the first.
    with _expect(_Exchange(commit, size_bytes, 3 * size_bytes + (64 << 20))):
        yield


@contextmanager
def _expect(exchange: _Exchange) -> Iterator[None]:
    token = _exchange.set(exchange)
    try:
        yield
    finally:
        _exchange.reset(token)


def check_commit(value: object) -> str:
    """Return ``value`` if it is a commit's id.

    Raises:
        AnswerRefused: anything else.
    """
    return _check_match(value, _COMMIT, "a commit", "40 lower-case hexadecimal digits")


def _make_client() -> httpx2.Client:
    client = default_client_factory()
    hooks = client.event_hooks
    client.event_hooks = {
        "request": [*hooks["request"], _prepare_request],
        "response": [*hooks["response"], _check_answer],
    }
    for transport in (client._transport, *client._mounts.values()):
        # There is no public way to give a transport its connections without also replacing what it does
        # about proxies and certificates; a test fails if the name changes.
        if isinstance(transport, httpx2.HTTPTransport):
            transport._pool._network_backend = MeteredBackend()
    return client


def _prepare_request(request: httpx2.Request) -> None:
    if not is_hub(request.url):
        request.headers.pop("Authorization", None)
    # What is not compressed cannot inflate, and has the size that it declares.
    request.headers["Accept-Encoding"] = "identity"
    is_read = request.method in ("GET", "HEAD")
    defaults = {
        "connect": _CONNECT_SECONDS,
        "read": _READ_SECONDS if is_read else _WRITE_ANSWER_SECONDS,
        "write": _READ_SECONDS,
    }
    given = {key: value for key, value in request.extensions.get("timeout", {}).items() if value is not None}
    request.extensions["timeout"] = defaults | given


def is_hub(url: httpx2.URL) -> bool:
    """Return whether the token may go there: to the Hub's own origin, or the same host with TLS added."""
    hub = httpx2.URL(constants.ENDPOINT)
    if url.host != hub.host:
        return False
    return _origin(url) == _origin(hub) or (_origin(hub) == ("http", 80) and _origin(url) == ("https", 443))


def _origin(url: httpx2.URL) -> tuple[str, int | None]:
    return url.scheme, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _check_answer(response: httpx2.Response) -> None:
    stream = response.extensions.get("network_stream")
    if isinstance(stream, MeteredStream):
        stream.end_headers()
    exchange = _exchange.get()
    _check_headers(response, exchange)
    if response.is_error:
        response.stream = httpx2.ByteStream(_read_error(response))
        if _pause_seconds(response) > MAX_PAUSE_SECONDS:
            # Otherwise huggingface_hub sleeps for as long as the server likes.
            hf_raise_for_status(response)
        return
    if exchange is None and response.request.method in ("GET", "HEAD"):
        # Not a call of this package: transformers, for example, loads a base by the same client.
        return
    exchange = exchange or _Exchange(None, None, MAX_ANSWER_BYTES)
    _count_page(response, exchange)
    response.stream = _BoundedStream(response, exchange)
    if exchange.size_bytes is None:
        _check_body(response.read())


def _check_headers(response: httpx2.Response, exchange: _Exchange | None) -> None:
    headers = response.headers
    codings = {coding.strip().lower() for coding in headers.get("Content-Encoding", "").split(",")}
    if codings & _COMPRESSED:
        raise AnswerRefused("it is compressed, expected it as it is (`Accept-Encoding: identity`)")
    commit = headers.get("X-Repo-Commit")
    if commit is not None:
        check_commit(commit)
        if exchange is not None and exchange.commit not in (None, commit):
            raise AnswerRefused(f"it is of the commit `{commit}`, expected `{exchange.commit}`")
    size = headers.get("X-Linked-Size")
    if size is not None:
        _check_match(size, _SIZE, "a size", "a number of bytes")
    if response.request.method == "HEAD" and not response.is_error:
        _check_metadata(response, exchange)
    if response.status_code == 206:
        _check_match(
            headers.get("Content-Range", ""), _CONTENT_RANGE, "a Content-Range", "`bytes FIRST-LAST/SIZE`"
        )


def _check_metadata(response: httpx2.Response, exchange: _Exchange | None) -> None:
    """Check what huggingface_hub makes the name and the expected size of a file in its cache of."""
    headers = response.headers
    for etag in (headers.get("X-Linked-ETag"), headers.get("ETag")):
        if etag is not None:
            # Stripped as huggingface_hub strips it.
            word = etag.lstrip("W/").strip('"')
            _check_match(word, _ETAG, "an ETag", "one word of letters, digits, `.`, `_` and `-`")
    size = headers.get("X-Linked-Size") or (None if response.is_redirect else headers.get("Content-Length"))
    if exchange is not None and exchange.size_bytes is not None and size is not None:
        _check_match(size, _SIZE, "a size", "a number of bytes")
        if int(size) != exchange.size_bytes:
            raise AnswerRefused(f"it declares a file of {int(size)} bytes, expected {exchange.size_bytes}")


def _check_match(value: object, pattern: re.Pattern[str], what: str, expected: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise AnswerRefused(f"it has `{str(value)[:_SHOWN]}` as {what}, expected {expected}")
    return value


def _pause_seconds(response: httpx2.Response) -> float:
    """Return the longest time for which huggingface_hub might wait before it asks again."""
    limits = parse_ratelimit_headers(response.headers)
    asked = response.headers.get("Retry-After", "").strip()
    return max(float(limits.reset_in_seconds) if limits else 0.0, float(asked) if asked.isdecimal() else 0.0)


def _count_page(response: httpx2.Response, exchange: _Exchange) -> None:
    exchange.pages += "next" in response.links
    if exchange.pages > MAX_PAGES:
        raise AnswerRefused(f"its list does not end after {MAX_PAGES} pages")


class _BoundedStream(httpx2.SyncByteStream):
    """A body that is cut off with an error at the bound of its exchange."""

    def __init__(self, response: httpx2.Response, exchange: _Exchange) -> None:
        self._stream = cast(httpx2.SyncByteStream, response.stream)
        self._exchange = exchange
        self._limit = min(_limit_of(response, exchange), exchange.remaining_bytes)
        declared = response.headers.get("Content-Length", "")
        if response.request.method != "HEAD" and _SIZE.fullmatch(declared) and int(declared) > self._limit:
            raise AnswerRefused(f"it declares {int(declared)} bytes, expected at most {self._limit}")

    def __iter__(self) -> Iterator[bytes]:
        count = 0
        for chunk in self._stream:
            count += len(chunk)
            if count > self._limit:
                raise AnswerRefused(f"it has more than {self._limit} bytes")
            self._exchange.remaining_bytes -= len(chunk)
            yield chunk

    def close(self) -> None:
        self._stream.close()


def _limit_of(response: httpx2.Response, exchange: _Exchange) -> int:
    if response.has_redirect_location:
        return MAX_ERROR_BYTES
    if exchange.size_bytes is None:
        return MAX_ANSWER_BYTES
    asked = _RANGE.fullmatch(response.request.headers.get("Range", ""))
    if asked is None:
        return exchange.size_bytes
    end = min(int(asked[2]) + 1 if asked[2] else exchange.size_bytes, exchange.size_bytes)
    # A server that knows no ranges sends the file from its beginning.
    return max(0, end - (int(asked[1]) if response.status_code == 206 else 0))


def _read_error(response: httpx2.Response) -> bytes:
    """Read the beginning of an error's body; nothing where huggingface_hub could not take it apart."""
    stream = cast(httpx2.SyncByteStream, response.stream)
    data = b""
    for chunk in stream:
        data += chunk
        if len(data) >= MAX_ERROR_BYTES:
            break
    stream.close()
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data[:MAX_ERROR_BYTES]
    return data if isinstance(value, dict) else b""


def _check_body(data: bytes) -> None:
    """Check what a JSON answer calls a commit or an object: in it, and in the lists in it."""
    try:
        value = json.loads(data)
    except RecursionError:
        raise AnswerRefused("its JSON is nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        # An answer to an upload may be anything; huggingface_hub reports it where it has to be JSON.
        return
    except ValueError:
        raise AnswerRefused("its JSON has a number with more than 4300 digits") from None
    for entry in _entries_of(value):
        for key in _COMMIT_KEYS & entry.keys():
            if entry[key] is not None:
                check_commit(entry[key])
        if entry.get("oid") is not None:
            _check_match(entry["oid"], _OBJECT, "an object id", "40 or 64 lower-case hexadecimal digits")


def _entries_of(value: Any) -> Iterator[dict[str, Any]]:
    lists: Iterable[Any] = [value]
    if isinstance(value, dict):
        yield value
        # Other objects within hold what authors wrote, such as the front matter of a card.
        lists = value.values()
    for entries in lists:
        if isinstance(entries, list):
            yield from (entry for entry in entries if isinstance(entry, dict))
