"""Text from outside, made safe to print: every foreign string in a message goes through here.

Control characters could drive a terminal, surrogates cannot be encoded, directional marks reorder
what a person reads, and a backtick would end the quotation; all of them leave here escaped.
"""

from __future__ import annotations

from typing import Any

SHOWN_CHARACTERS = 120
_SHOWN_ITEMS = 5


def escape(text: str, *, limit: int = SHOWN_CHARACTERS) -> str:
    """Return ``text`` with every character that does not print as itself written as an escape, shortened."""
    shown = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(_escape_character(character) for character in shown)


def _escape_character(character: str) -> str:
    if character == "`":
        return "'"
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


def quote(value: Any) -> str:
    """Return a value of a document between backticks; a string has quotes, a number has none."""
    if isinstance(value, str):
        return f'`"{escape(value)}"`'
    if value is None or isinstance(value, bool):
        return {None: "`null`", True: "`true`", False: "`false`"}[value]
    if isinstance(value, int):
        # A huge integer has no decimal text at all in Python.
        return f"`{value}`" if value.bit_length() <= 128 else "`a number of more than 38 digits`"
    if isinstance(value, float):
        return f"`{value}`"
    return f"`a list of {len(value)}`" if isinstance(value, list) else "`an object`"


def quote_name(name: str) -> str:
    """Return a name, such as that of a tensor, between backticks."""
    return f"`{escape(name)}`"


def quote_names(names: list[str]) -> str:
    """Return names between backticks, the first few of them."""
    shown = ", ".join(quote_name(name) for name in names[:_SHOWN_ITEMS])
    rest = len(names) - _SHOWN_ITEMS
    return f"{shown} and {rest} more" if rest > 0 else shown
