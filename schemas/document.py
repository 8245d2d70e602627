"""JSON in and out: bounded and strict when read, the same bytes every time when written.

``load_json`` is the only way a JSON text from outside becomes Python values. Its size, its depth, the
number of its values and the digits of its integers are bounded before anything is built; repeated keys,
``NaN``, ``Infinity`` and half surrogate pairs are refused. ``Document`` is the base of everything this
project writes, ``canonical_json`` its only text form.
"""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from .errors import InvalidDocument

MAX_JSON_DEPTH = 64
# The header of an adapter with 42 000 tensors has 380 000 values.
MAX_JSON_VALUES = 1_000_000
# Python refuses to print or read an integer of more than 4300 digits; sums and products of shorter ones fit.
MAX_INTEGER_DIGITS = 1000
MAX_CONFIG_BYTES = 4 << 20
# A count or a size in a document: every database and every array library holds it.
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
PositiveCount = Annotated[int, Field(ge=1, lt=1 << 63)]

# The scan splits its piece of text at every quote, which takes up to 40 bytes for one byte of text.
_SCANNED_BYTES = 1 << 18
# A bracket that opens is a step of 1, one that closes a step of -1.
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_OTHER_BYTES = bytes(byte for byte in range(256) if byte not in b"[]{}")
_BOM = b"\xef\xbb\xbf"
_SHOWN_PROBLEMS = 20
# One description takes a kilobyte; one for each value of a large document would take gigabytes.
_MAX_DESCRIBED_PROBLEMS = 10_000
_SHOWN_CHARACTERS = 60


def load_json(
    data: bytes, *, what: str, max_bytes: int = MAX_CONFIG_BYTES, max_values: int = MAX_JSON_VALUES
) -> Any:
    """Return the value of a JSON text in UTF-8; a byte order mark is skipped.

    Args:
        data: the bytes of the text.
        what: how messages call it, such as a file name.
        max_bytes: the largest text that is parsed.
        max_values: the most values that are parsed, entries of objects and lists counted alike.

    Raises:
        InvalidDocument: too large, too deep, too many values, not UTF-8, not JSON, a repeated key, NaN or
            Infinity, an integer of too many digits, or half a surrogate pair.
    """
    if len(data) > max_bytes:
        # Not how many: of a large file only one byte too many is read.
        raise InvalidDocument(f"`{what}` has more than {max_bytes} bytes")
    _check_structure(data, what, max_values)
    try:
        value = json.loads(
            data.removeprefix(_BOM).decode("utf-8"),
            object_pairs_hook=_object_of_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=finite_number,
            parse_int=bounded_integer,
        )
        if b"\\u" in data:
            # Half a surrogate pair cannot be encoded in UTF-8, so no file, terminal or database accepts it.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidDocument(f"`{what}` is not UTF-8 text: byte {error.start} cannot be decoded") from error
    except UnicodeEncodeError as error:
        raise InvalidDocument(
            f"`{what}` has half a character: an escape such as `\\ud800` without its other half"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidDocument(f"`{what}` is not JSON: {error}") from error
    return value


def _check_structure(data: bytes, what: str, max_values: int) -> None:
    # The parser recurses and builds every value, so depth and number are known before it runs.
    depth, values = 0, 1
    for outside in _outside_strings(data):
        # One value for each bracket and each comma, or one too many for an empty container.
        values += outside.count(b",") + outside.count(b"[") + outside.count(b"{")
        if values > max_values:
            raise InvalidDocument(f"`{what}` has more than {max_values} values")
        steps = array("b", outside.translate(_STEPS, _OTHER_BYTES))
        if max(accumulate(steps, initial=depth)) > MAX_JSON_DEPTH:
            raise InvalidDocument(f"`{what}` nests deeper than {MAX_JSON_DEPTH} levels")
        depth += sum(steps)


def _outside_strings(data: bytes) -> Iterator[bytes]:
    """Yield the text without its strings, piece by piece; an unclosed string ends with the text."""
    is_inside, start = False, 0
    while start < len(data):
        piece = data[start : start + _SCANNED_BYTES]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2 and len(piece) > 1:
            # A backslash belongs to the character that it escapes.
            piece = piece[:-1]
        start += len(piece)
        parts = piece.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        yield b"".join(parts[is_inside::2])
        is_inside ^= len(parts) % 2 == 0


def _object_of_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key `{repeated}` is in one object twice")
    return result


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"`{name}` is not a JSON number")


def finite_number(text: str) -> float:
    """Return the number that a text spells.

    Raises:
        ValueError: it is beyond the range of a float64, or not a number.
    """
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"`{text[:40]}` is beyond the range of a number")
    return number


def bounded_integer(text: str) -> int:
    """Return the integer that decimal digits spell.

    Raises:
        ValueError: they are more than ``MAX_INTEGER_DIGITS``.
    """
    digits = len(text.lstrip("+-"))
    if digits > MAX_INTEGER_DIGITS:
        raise ValueError(f"an integer has {digits} digits, expected at most {MAX_INTEGER_DIGITS}")
    return int(text)


def canonical_json(value: Any) -> bytes:
    """Return the canonical text of a JSON value: keys sorted, two spaces, ASCII, a final newline.

    Equal values give equal bytes, whatever the order in which they were built.
    """
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return text.encode("ascii") + b"\n"


class Document(BaseModel):
    """Base of the documents that this project writes: immutable, strict about types."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    def to_bytes(self) -> bytes:
        """Return the canonical JSON text of this document."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        *,
        what: str,
        max_bytes: int = MAX_CONFIG_BYTES,
        max_values: int = MAX_JSON_VALUES,
    ) -> Self:
        """Read a document; every place that breaks the schema is in one ``InvalidDocument``."""
        load_json(data, what=what, max_bytes=max_bytes, max_values=max_values)
        return cls.from_checked(data, what=what)

    @classmethod
    def from_checked(cls, data: bytes, *, what: str) -> Self:
        """Read a document from a text that ``load_json`` took.

        The values that it built can be gone by now, so that a large document is in memory once.
        """
        return cls._validated(data.removeprefix(_BOM), what)

    @classmethod
    def from_value(cls, value: Any, *, what: str) -> Self:
        """Read a document from an already parsed JSON value."""
        # By JSON's rules a list may become a tuple, while a string never becomes a number.
        return cls._validated(json.dumps(value).encode("ascii"), what)

    @classmethod
    def _validated(cls, data: bytes, what: str) -> Self:
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            if error.error_count() > _MAX_DESCRIBED_PROBLEMS:
                raise InvalidDocument(f"`{what}` breaks its schema in {error.error_count()} places") from None
            # pydantic builds the found value anew for every problem; for a missing field, the whole document.
            problems = cls._describe(error, with_input=len(data) <= MAX_CONFIG_BYTES)
            shown = "; ".join(problems[:_SHOWN_PROBLEMS])
            raise InvalidDocument(f"`{what}` breaks its schema: {shown}", problems=problems) from error

    @classmethod
    def _describe(cls, error: ValidationError, *, with_input: bool) -> list[str]:
        return describe_problems(error, with_input=with_input)


def leaving_out(*names: str) -> Any:
    """Return a serializer that leaves out each of these fields where it has its default.

    A document without what was added later keeps the bytes that earlier versions wrote, and can read.
    """

    def serialize(self: BaseModel, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        value: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        return {
            key: each
            for key, each in value.items()
            if key not in names or getattr(self, key) != fields[key].default
        }

    return model_serializer(mode="wrap")(serialize)


def describe_problems(error: ValidationError, *, with_input: bool = True) -> list[str]:
    """Return one line per problem: the path into the document, what is wrong, and what was found."""
    lines = []
    for problem in error.errors(include_url=False, include_context=False, include_input=with_input):
        place = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        if problem["type"] == "value_error" or not with_input:
            # Our own validators report what they found; their input may be the whole document.
            lines.append(f"{place}: {message}" if place else message)
        else:
            lines.append(f"{place}: {message}, found `{_shorten(problem['input'])}`")
    return lines


def _shorten(value: Any) -> str:
    if isinstance(value, str):
        # A whole string would be written out only to be cut off.
        value = value[: _SHOWN_CHARACTERS + 1]
    elif isinstance(value, (dict, list)) and len(value) > _SHOWN_CHARACTERS:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} values"
    found = repr(value)
    return found if len(found) <= _SHOWN_CHARACTERS else found[: _SHOWN_CHARACTERS - 3] + "..."
