"""How members are told apart: by a letter, which needs no colour, and by a colour.

The colours are backgrounds for black text, in a dark page as in a light one: black on each of them has a
contrast of at least 5.5 to 1. They were chosen greedily, each the one furthest in OKLab from all before it
among those of moderate chroma, so any first few of them are as different as so many can be. From the
thirty-third member on they come again; the letters do not.
"""

from __future__ import annotations

from ...schemas.trace import NO_MEMBER

COLOURS = (
    *("#85a0f5", "#fbe853", "#d7680a", "#19ae5f", "#14fdfd", "#fed5fd", "#f67bb7", "#bab192"),
    *("#9e7990", "#7cdf7c", "#1896ab", "#968808", "#3bc8c8", "#feaa21", "#cae8c5", "#b371da"),
    *("#a2cffd", "#dca2ff", "#b0b326", "#fd8d76", "#fec1a6", "#dc5a71", "#2988e5", "#7c9c7e"),
    *("#c79bbb", "#b4fd8a", "#c89343", "#13b9fb", "#7c7ec3", "#ced276", "#8ba9bd", "#77bf7f"),
)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NO_LETTER = "-"


def letter_of(member: int) -> str:
    """``A`` to ``Z``, then ``AA``, ``AB`` and so on; ``-`` for no member."""
    if member == NO_MEMBER:
        return NO_LETTER
    rest, last = divmod(member, len(_LETTERS))
    return (letter_of(rest - 1) if rest else "") + _LETTERS[last]


def colour_of(member: int) -> str:
    """The background of a member's tokens, as ``#rrggbb``."""
    return COLOURS[member % len(COLOURS)]
