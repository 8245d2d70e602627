"""TOML in: bounded before it is parsed.

``tomllib`` copies a key's parts for each of them, so a line of a hundred thousand dots takes gigabytes. Key
length, depth and number of values are therefore counted in the text first. Recipes and policies need three
levels; there is nothing to gain from more.
"""

from __future__ import annotations

import re
import tomllib
from array import array
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from .document import finite_number
from .errors import InvalidDocument

MAX_TOML_BYTES = 1 << 20
MAX_TOML_DEPTH = 8
# A recipe of 4096 members has 12 288, a policy at its limits 40 000.
MAX_TOML_VALUES = 50_000

# Strings and comments. An unclosed one goes on to the end of the line or of the text, as the parser sees it.
_TEXT = re.compile(
    rb'"""(?:[^"\\]|\\.|"{1,2}(?!"))*+(?:"{3,5}|\Z)'
    rb"|'''(?:[^']|'{1,2}(?!'))*+(?:'{3,5}|\Z)"
    rb'|"(?:[^"\\\n]|\\[^\n])*+"?'
    rb"|'[^'\n]*+'?"
    rb"|\#[^\n]*+",
    re.DOTALL,
)
_DOTTED_KEY = re.compile(rb"(?<![\w-])(?:[\w-]++[ \t]*+\.[ \t]*+){%d}" % MAX_TOML_DEPTH)
# Neither Python's limit on digits nor the time to read them is ever reached.
_LONG_NUMBER = re.compile(rb"(?<![0-9_])[0-9_]{1000}")
_MAX_INTEGER = 10**20
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_OTHER_BYTES = bytes(byte for byte in range(256) if byte not in b"[]{}")


def load_toml(data: bytes, *, what: str, max_bytes: int = MAX_TOML_BYTES) -> dict[str, Any]:
    """Return the values of a TOML text in UTF-8, all of which JSON can spell.

    Args:
        data: the bytes of the text.
        what: how messages call it, such as a file name.
        max_bytes: the largest text that is parsed.

    Raises:
        InvalidDocument: too large, too deep, too many values, not UTF-8, not TOML, a date or a time, or a
            number that JSON does not have.
    """
    if len(data) > max_bytes:
        raise InvalidDocument(f"`{what}` has {len(data)} bytes, expected at most {max_bytes}")
    _check_structure(data, what)
    try:
        value = tomllib.loads(data.decode("utf-8"), parse_float=finite_number)
    except UnicodeDecodeError as error:
        raise InvalidDocument(f"`{what}` is not UTF-8 text: byte {error.start} cannot be decoded") from error
    except (ValueError, RecursionError) as error:
        raise InvalidDocument(f"`{what}` is not TOML: {error}") from error
    _check_value(value, what)
    return value


def _check_structure(data: bytes, what: str) -> None:
    bare = _TEXT.sub(b"s", data)
    steps = array("b", bare.translate(_STEPS, _OTHER_BYTES))
    if _DOTTED_KEY.search(bare) or max(accumulate(steps), default=0) > MAX_TOML_DEPTH:
        raise InvalidDocument(f"`{what}` nests deeper than {MAX_TOML_DEPTH} levels")
    if sum(map(bare.count, (b"=", b",", b"[", b"{"))) > MAX_TOML_VALUES:
        raise InvalidDocument(f"`{what}` has more than {MAX_TOML_VALUES} values")
    if _LONG_NUMBER.search(bare):
        raise _long_number(what)


def _check_value(value: Any, what: str) -> None:
    if isinstance(value, Mapping):
        for each in value.values():
            _check_value(each, what)
    elif isinstance(value, list):
        for each in value:
            _check_value(each, what)
    elif isinstance(value, int):
        # In hexadecimal an integer of any length is read; printing it fails.
        if abs(value) >= _MAX_INTEGER:
            raise _long_number(what)
    elif not isinstance(value, (str, float)):
        raise InvalidDocument(f"`{what}` holds a date or a time, which no field takes")


def _long_number(what: str) -> InvalidDocument:
    return InvalidDocument(f"`{what}` holds a number of more than 20 digits, which no field takes")
