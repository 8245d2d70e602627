"""Answers that only a damaged or hostile Hub gives, as cases like those of ``hub_faults``."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

from support.hub import Fault, LoopbackHub
from support.hub_faults import MODEL, Case

COMMIT = "a" * 40
OTHER = "b" * 40
VICTIM = "/home/you/.ssh/authorized_keys"
# A clock by which every read takes five seconds, so that nothing depends on how busy this machine is: honest
# answers come in two or three reads.
SLOW_CLOCK = (
    "import itertools; from meteora_registry.registry.hub import rate; "
    "rate.monotonic = itertools.count(0, 5).__next__"
)

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def answer_with(method: str, pattern: str, value: object, **headers: str) -> Callable[[LoopbackHub], Fault]:
    """Answer every matching request with this JSON."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    named = {key.replace("_", "-"): text for key, text in headers.items()}
    return lambda hub: hub.fault(method, pattern, status=200, body=body, headers=named, times=10_000)


def write_with(method: str, pattern: str, write: Callable[[Any], None]) -> Callable[[LoopbackHub], Fault]:
    """Leave the connection of every matching request to ``write``."""
    return lambda hub: hub.fault(method, pattern, action="raw", write=write, times=10_000)


def send_endlessly(start: bytes, piece: bytes) -> Callable[[Any], None]:
    """Send a piece again and again until the other side hangs up."""

    def write(file: Any) -> None:
        file.write(start)
        while True:
            file.write(piece)
            file.flush()

    return write


def drip(start: bytes, fault: Callable[[], Fault | None]) -> Callable[[Any], None]:
    """Send a byte at a time, with a rest after each, until the other side hangs up."""

    def write(file: Any) -> None:
        file.write(start)
        while not _released(fault()):
            file.write(b"a")
            file.flush()

    return write


def _released(fault: Fault | None) -> bool:
    return fault is not None and fault.release.wait(0.02)


def dripping(method: str, pattern: str, start: bytes) -> Callable[[LoopbackHub], Fault]:
    """Drip on every matching request."""

    def arrange(hub: LoopbackHub) -> Fault:
        made: list[Fault] = []
        write = drip(start, lambda: made[0] if made else None)
        made.append(hub.fault(method, pattern, action="raw", write=write, times=10_000))
        return made[0]

    return arrange


def describe(**facts: object) -> dict[str, object]:
    """Return the Hub's description of a repository."""
    return {"_id": "0", "id": "org/legal", "sha": COMMIT, "private": False, "tags": []} | facts


def entry(**facts: object) -> dict[str, object]:
    """Return a file in the Hub's list."""
    return {"type": "file", "path": "adapter_config.json", "size": 100, "oid": COMMIT} | facts


def _endless_pages(hub: LoopbackHub) -> Fault:
    link = {"Link": f'<{hub.url}/api/models/org/legal/tree/next>; rel="next"'}
    return hub.fault("GET", "/tree/", status=200, body=b"[]", headers=link, times=10_000)


def _refused(reason: str, about: str = "org/legal") -> str:
    return f"the Hub's answer about `{about}` was refused: {reason}"


PINNED = "org/legal@COMMIT"
_AS_COMMIT = "as a commit, expected 40 lower-case hexadecimal digits"
_AS_ETAG = "as an ETag, expected one word of letters, digits, `.`, `_` and `-`"
_SLOW = "less than 4096 bytes a second over 30 seconds"
_LFS = {"oid": "c" * 64, "size": 100, "pointerSize": 130}

CASES = (
    Case(
        "a path in place of a commit",
        answer_with("GET", MODEL, describe(sha=VICTIM)),
        _refused(f"it has `{VICTIM}` {_AS_COMMIT}"),
        1,
    ),
    Case(
        "a commit in upper case",
        answer_with("GET", MODEL, describe(sha=COMMIT.upper())),
        _refused(f"it has `{COMMIT.upper()}` {_AS_COMMIT}"),
        1,
    ),
    Case(
        "a number in place of a commit",
        answer_with("GET", MODEL, describe(sha=7)),
        _refused(f"it has `7` {_AS_COMMIT}"),
        1,
    ),
    Case(
        "a repository without a commit",
        answer_with("GET", MODEL, describe(sha=None)),
        "the Hub's answer about `org/legal` cannot be understood: AssertionError: Repo info returned from "
        "server must have a revision sha.",
        2,
    ),
    Case(
        "a path in `X-Repo-Commit`",
        answer_with("HEAD", "/resolve/", {}, ETag=COMMIT, X_Repo_Commit=VICTIM),
        _refused(f"it has `{VICTIM}` {_AS_COMMIT}", PINNED),
        1,
    ),
    Case(
        "another commit in `X-Repo-Commit`",
        answer_with("HEAD", "/resolve/", {}, ETag=COMMIT, X_Repo_Commit=OTHER),
        _refused("it is of the commit `COMMIT`, expected `COMMIT`", PINNED),
        1,
    ),
    Case(
        "a path as an ETag",
        answer_with("HEAD", "/resolve/", {}, ETag=f'W/"../..{VICTIM}"'),
        _refused(f"it has `../..{VICTIM}` {_AS_ETAG}", PINNED),
        1,
    ),
    Case(
        "a path as the ETag of the linked file",
        answer_with("HEAD", "/resolve/", {}, ETag=COMMIT, X_Linked_ETag=f'"{VICTIM}"'),
        _refused(f"it has `{VICTIM}` {_AS_ETAG}", PINNED),
        1,
    ),
    Case(
        "a negative size of the linked file",
        answer_with("HEAD", "/resolve/", {}, X_Linked_Size="-1"),
        _refused("it has `-1` as a size, expected a number of bytes", PINNED),
        1,
    ),
    Case(
        "a linked file of another size than listed",
        answer_with("HEAD", "^/org/legal/resolve/.*/README.md", {}, ETag=COMMIT, X_Linked_Size="9999999"),
        _refused("it declares a file of 9999999 bytes, expected 21", PINNED),
        1,
    ),
    Case(
        "a range without its place",
        lambda hub: hub.fault(
            "GET", "/resolve/", status=206, headers={"Content-Range": "bytes */*"}, times=99
        ),
        _refused("it has `bytes */*` as a Content-Range, expected `bytes FIRST-LAST/SIZE`", PINNED),
        1,
    ),
    Case(
        "a file outside the repository",
        answer_with("GET", "/tree/", [entry(path="../../.bashrc")]),
        _refused("it lists `../../.bashrc`, expected a path within the repository", PINNED),
        1,
    ),
    Case(
        "a file at an absolute path",
        answer_with("GET", "/tree/", [entry(path="/etc/adapter_config.json")]),
        _refused("it lists `/etc/adapter_config.json`, expected a path within the repository", PINNED),
        1,
    ),
    Case(
        "a file with a list for its path",
        answer_with("GET", "/tree/", [entry(path=[])]),
        _refused("it lists `[]`, expected a path within the repository", PINNED),
        1,
    ),
    Case(
        "a file whose path is not Unicode",
        answer_with("GET", "/tree/", [entry(path="\ud800/adapter_config.json")]),
        _refused("it lists `\\ud800/adapter_config.json`, expected a path within the repository", PINNED),
        1,
    ),
    Case(
        "a file that is listed twice",
        answer_with("GET", "/tree/", [entry(), entry(size=101)]),
        _refused("it lists a path more than once", PINNED),
        1,
    ),
    Case(
        "a file of a negative size",
        answer_with("GET", "/tree/", [entry(size=-1)]),
        _refused("it lists `adapter_config.json` with the size `-1`, expected a number of bytes", PINNED),
        1,
    ),
    Case(
        "a file larger than any",
        answer_with("GET", "/tree/", [entry(size=1 << 70)]),
        _refused(
            f"it lists `adapter_config.json` with the size `{1 << 70}`, expected a number of bytes",
            PINNED,
        ),
        1,
    ),
    Case(
        "a size that is not a number",
        answer_with("GET", "/tree/", [entry(size="many")]),
        _refused("it lists `adapter_config.json` with the size `many`, expected a number of bytes", PINNED),
        1,
    ),
    Case(
        "a file without a size",
        answer_with("GET", "/tree/", [{"type": "file", "path": "a", "oid": COMMIT}]),
        "the Hub's answer about `org/legal@COMMIT` cannot be understood: KeyError: 'size'",
        2,
    ),
    Case(
        "a file with two sizes",
        answer_with("GET", "/tree/", [entry(lfs=_LFS | {"size": 99})]),
        _refused("it lists `adapter_config.json` with two sizes, 100 and `99`", PINNED),
        1,
    ),
    Case(
        "a path in place of a digest",
        answer_with("GET", "/tree/", [entry(lfs=_LFS | {"oid": VICTIM})]),
        _refused(f"it lists `adapter_config.json` with the digest `{VICTIM}`", PINNED),
        1,
    ),
    Case(
        "a path in place of git's object id",
        answer_with("GET", "/tree/", [entry(oid=VICTIM)]),
        _refused(
            f"it has `{VICTIM}` as an object id, expected 40 or 64 lower-case hexadecimal digits", PINNED
        ),
        1,
    ),
    Case(
        "JSON nested 100 000 deep",
        answer_with("GET", MODEL, b"[" * 100_000),
        _refused("its JSON is nested too deeply"),
        1,
    ),
    Case(
        "a number of 5000 digits",
        answer_with("GET", MODEL, b'{"downloads": ' + b"1" * 5000 + b"}"),
        _refused("its JSON has a number with more than 4300 digits"),
        1,
    ),
    Case(
        "an object in place of a list of files",
        answer_with("GET", "/tree/", {"error": "none"}),
        "the Hub's answer about `org/legal@COMMIT` cannot be understood: TypeError: string indices must be "
        "integers, not 'str'",
        2,
    ),
    Case(
        "an error that is not an object (503)",
        lambda hub: hub.fault("GET", MODEL, status=503, body=b'["busy"]', times=99),
        "the Hub failed for `org/legal` (503)",
        2,
    ),
    Case(
        "an error with an endless body (503)",
        write_with("GET", MODEL, send_endlessly(b"HTTP/1.1 503 Unavailable\r\n\r\n", b"a" * (1 << 16))),
        "the Hub failed for `org/legal` (503)",
        2,
    ),
    Case(
        "an endless answer",
        write_with("GET", MODEL, send_endlessly(_HEAD + b'\r\n{"id": "', b"a" * (1 << 16))),
        _refused("it has more than 16777216 bytes"),
        1,
    ),
    Case(
        "an answer that declares too much",
        write_with("GET", MODEL, send_endlessly(_HEAD + b"Content-Length: 600000000\r\n\r\n", b"a" * 1000)),
        _refused("it declares 600000000 bytes, expected at most 16777216"),
        1,
    ),
    Case(
        "an endless config",
        write_with("GET", "/resolve/", send_endlessly(b"HTTP/1.1 200 OK\r\n\r\n", b"a" * (1 << 16))),
        _refused("it has more than 255 bytes", PINNED),
        1,
    ),
    Case(
        "endless weights",
        lambda hub: hub.fault(
            "GET",
            "^/storage/",
            action="raw",
            write=send_endlessly(b"HTTP/1.1 200 OK\r\n\r\n", b"a" * (1 << 16)),
            times=99,
            skip=1,
        ),
        _refused("it has more than 4608 bytes", PINNED),
        1,
    ),
    Case(
        "endless provisional answers",
        write_with("GET", MODEL, send_endlessly(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000)),
        _refused("it has more than 524288 bytes of headers"),
        1,
    ),
    Case(
        "an answer of a few bytes a second",
        dripping("GET", MODEL, _HEAD + b'\r\n{"id": "'),
        f"the Hub's answer about `org/legal` came too slowly: {_SLOW}",
        2,
        prelude=SLOW_CLOCK,
    ),
    Case(
        "headers of a few bytes a second",
        dripping("GET", MODEL, _HEAD + b"X-Long: "),
        f"the Hub's answer about `org/legal` came too slowly: {_SLOW}",
        2,
        prelude=SLOW_CLOCK,
    ),
    Case(
        "a config of a few bytes a second",
        dripping("GET", "/resolve/", b"HTTP/1.1 200 OK\r\n\r\n"),
        f"the Hub's answer about `{PINNED}` came too slowly: {_SLOW}",
        2,
        prelude=SLOW_CLOCK,
    ),
    Case(
        "a compressed answer",
        answer_with("GET", MODEL, gzip.compress(bytes(1 << 20)), Content_Encoding="gzip"),
        _refused("it is compressed, expected it as it is (`Accept-Encoding: identity`)"),
        1,
    ),
    Case(
        "a list without end",
        _endless_pages,
        _refused("its list does not end after 200 pages", PINNED),
        1,
    ),
    Case(
        "busy for years, while it lists (429)",
        lambda hub: hub.fault("GET", "/tree/", status=429, headers={"Retry-After": "9" * 9}, times=99),
        "the Hub limits how often it may be asked (429) and asks to wait 999999999 seconds; "
        "`org/legal@COMMIT` was not fetched or changed",
        2,
    ),
    Case(
        "busy for a time that is not a number (429)",
        lambda hub: hub.fault("GET", MODEL, status=429, headers={"Retry-After": "²"}, times=1),
        "the Hub is busy (429); asking again in 1 seconds",
        0,
        "the adapter, catalogued",
    ),
)
