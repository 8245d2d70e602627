"""JSON in and out: bounded and strict when read, the same bytes every time when written.

``load_json`` is the only way a JSON text from outside becomes Python values: its size and depth are
bounded, a key may stand once only, and ``NaN`` and ``Infinity`` are no JSON. ``Document`` is the
base of everything this project writes, ``canonical_json`` its one spelling.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from collections import Counter
from itertools import accumulate
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import InvalidDocument

MAX_JSON_DEPTH = 64
MAX_CONFIG_BYTES = 4 << 20
# A string, or the rest of the text after a quote that nothing closes. Nothing in it is tried twice.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
# A bracket that opens is a step of 1, one that closes a step of -1.
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_OTHER_BYTES = bytes(byte for byte in range(256) if byte not in b"[]{}")
_BOM = "\ufeff"
_SHOWN_PROBLEMS = 20


def load_json(data: bytes, *, what: str, max_bytes: int = MAX_CONFIG_BYTES) -> Any:
    """The value of a JSON text in UTF-8; a byte order mark is skipped.

    Args:
        data: the bytes of the text.
        what: how messages call it, such as a file name.
        max_bytes: the largest text that is parsed.

    Raises:
        InvalidDocument: too large, too deep, not UTF-8, not JSON, a key twice, NaN or Infinity.
    """
    if len(data) > max_bytes:
        raise InvalidDocument(f"`{what}` has {len(data)} bytes, expected at most {max_bytes}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidDocument(f"`{what}` is not UTF-8 text: byte {error.start} cannot be decoded") from error
    text = text.removeprefix(_BOM)
    _check_depth(data, what)
    try:
        return json.loads(
            text,
            object_pairs_hook=_object_of_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite_number,
        )
    except (ValueError, RecursionError) as error:
        raise InvalidDocument(f"`{what}` is not JSON: {error}") from error


def _check_depth(data: bytes, what: str) -> None:
    # The parser recurses, so the depth is known before it runs. Brackets inside strings do not count.
    steps = array("b", _drop_strings(data).translate(_STEPS, _OTHER_BYTES))
    if max(accumulate(steps), default=0) > MAX_JSON_DEPTH:
        raise InvalidDocument(f"`{what}` nests deeper than {MAX_JSON_DEPTH} levels")


def _drop_strings(data: bytes) -> bytes:
    if b"\\" not in data:
        # Nothing is escaped, so every other quote closes a string.
        return b"".join(data.split(b'"')[::2])
    outside, position = bytearray(), 0
    # A substitution would say the same, and keep hundreds of bytes for every string.
    for string in _STRING.finditer(data):
        outside += data[position : string.start()]
        position = string.end()
    return bytes(outside + data[position:])


def _object_of_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key `{repeated}` stands twice in one object")
    return result


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"`{name}` is not a JSON number")


def _finite_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"`{text[:40]}` is beyond the range of a number")
    return number


def canonical_json(value: Any) -> bytes:
    """One spelling of a JSON value: keys sorted, two spaces, ASCII, a final newline.

    Equal values give equal bytes, whatever the order in which they were built.
    """
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return text.encode("ascii") + b"\n"


class Document(BaseModel):
    """Base of the documents that this project writes: immutable, strict about types."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    def to_bytes(self) -> bytes:
        """The canonical JSON text of this document."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes, *, what: str, max_bytes: int = MAX_CONFIG_BYTES) -> Self:
        """Read a document; every place that breaks the schema is in one ``InvalidDocument``."""
        return cls.from_value(load_json(data, what=what, max_bytes=max_bytes), what=what)

    @classmethod
    def from_value(cls, value: Any, *, what: str) -> Self:
        """Read a document from an already parsed JSON value."""
        try:
            # Through JSON's rules, so that a list may fill a tuple while a string never fills a number.
            return cls.model_validate_json(json.dumps(value))
        except ValidationError as error:
            problems = describe_problems(error)
            shown = "; ".join(problems[:_SHOWN_PROBLEMS])
            raise InvalidDocument(f"`{what}` breaks its schema: {shown}", problems=problems) from error


def describe_problems(error: ValidationError) -> list[str]:
    """One line per problem: the path into the document, what is wrong, and what was found."""
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        place = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        if problem["type"] == "value_error":
            # Our own validators say what they found; their input may be the whole document.
            lines.append(f"{place}: {message}" if place else message)
        else:
            found = repr(problem["input"])
            lines.append(f"{place}: {message}, found `{found if len(found) <= 60 else found[:57] + '...'}`")
    return lines
