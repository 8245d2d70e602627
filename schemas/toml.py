"""TOML: bounded before it is parsed, and the documents that a person types in it.

``tomllib`` copies a key's parts for each of them, so a line of a hundred thousand dots takes gigabytes. Key
length, depth and number of values are therefore counted in the text first. Recipes and policies need three
levels; there is nothing to gain from more.

A ``TomlDocument`` has no place to learn of a misspelt key but its reader, so no key is skipped, and a refusal
names the nearest key and shows an example.
"""

from __future__ import annotations

import re
import tomllib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import accumulate
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from .document import Document, describe_problems, finite_number
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
_SHOWN_CHARACTERS = 200
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


class TomlDocument(Document):
    """Base of the documents that people type; ``example`` shows the way, on one line."""

    model_config = ConfigDict(extra="forbid")
    example: ClassVar[str]

    @classmethod
    def from_toml(cls, data: bytes, *, what: str) -> Self:
        """Read a document from TOML.

        Raises:
            InvalidDocument: too large or too deep, not TOML, or a field breaks the schema.
        """
        try:
            return cls.from_value(load_toml(data, what=what), what=what)
        except InvalidDocument as error:
            error.hint = error.hint or cls.example
            raise

    @classmethod
    def _describe(cls, error: ValidationError, *, with_input: bool) -> list[str]:
        lines = describe_problems(error, with_input=with_input)
        found = error.errors(include_url=False, include_context=False, include_input=False)
        for index, problem in enumerate(found):
            if problem["type"] == "extra_forbidden":
                lines[index] = _describe_unknown(cls, problem["loc"])
            elif problem["type"] == "missing":
                # What was found in its place is the whole document.
                lines[index] = lines[index].partition(", found ")[0]
        return [
            line for line, problem in zip(lines, found, strict=True) if not _is_made_empty(problem, found)
        ]


def _is_made_empty(problem: ErrorDetails, found: Sequence[ErrorDetails]) -> bool:
    """Return whether a list is too short for its malformed entries alone, which are reported themselves."""
    place = problem["loc"]
    return problem["type"] == "too_short" and any(
        len(each["loc"]) > len(place) and each["loc"][: len(place)] == place for each in found
    )


def _describe_unknown(document: type[BaseModel], place: Sequence[str | int]) -> str:
    """Return what is wrong with a key that a document does not have; its value is not shown."""
    known = _keys_at(document, place[:-1])
    nearest = get_close_matches(str(place[-1]), known, n=1)
    way_out = f"did you mean `{nearest[0]}`?" if nearest else f"expected one of {', '.join(sorted(known))}"
    return f"{'.'.join(map(str, place))[:_SHOWN_CHARACTERS]}: there is no such key, {way_out}"


def _keys_at(document: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    for name in place:
        if isinstance(name, str) and name in document.model_fields:
            document = next(_documents_in(document.model_fields[name].annotation), document)
    return list(document.model_fields)


def _documents_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _documents_in(part)


def load_toml(data: bytes, *, what: str) -> dict[str, Any]:
    """Return the values of a TOML text in UTF-8, all of which JSON can spell.

    Args:
        data: the bytes of the text.
        what: how messages call it, such as a file name.

    Raises:
        InvalidDocument: too large, too deep, too many values, not UTF-8, not TOML, a date or a time, or a
            number that JSON does not have.
    """
    if len(data) > MAX_TOML_BYTES:
        # Not how many: of a large file only one byte too many is read.
        raise InvalidDocument(f"`{what}` has more than {MAX_TOML_BYTES} bytes")
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


def dump_toml(values: Mapping[str, Any]) -> str:
    """Return values as TOML, a key a line: texts, numbers, booleans, and lists and tables of these."""
    return "".join(f"{_spell_key(key)} = {_spell(value)}\n" for key, value in values.items())


def _spell(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _spell_text(value)
        case Mapping():
            pairs = ", ".join(f"{_spell_key(key)} = {_spell(each)}" for key, each in value.items())
            return f"{{{pairs}}}"
        case list() | tuple():
            return "".join(["[\n", *(f"    {_spell(each)},\n" for each in value), "]"])
        case _:
            return repr(value)


def _spell_key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _spell_text(key)


def _spell_text(text: str) -> str:
    spelled = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else _escape(c) for c in spelled) + '"'


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04X}" if code < 1 << 16 else f"\\U{code:08X}"
