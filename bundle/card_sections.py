"""Sections of a bundle's card that ``push`` puts in between marks, and the card without them.

The manifest lists the digest of the card that was written with the bundle. A section that was added when the
bundle was published is a statement of the publisher, so the rest is what the digest is compared with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..schemas.card_examples import Example
from ..schemas.digest import Digest
from ..schemas.errors import DataRefused
from .evaluated_card import without_evaluation

EXAMPLES = "examples"
_START, _END = "<!-- added by push: {} -->", "<!-- end of what push added -->"
_SECTION = rb"<!-- added by push: %s -->\n.*?\n<!-- end of what push added -->\n\n"
_ANY_SECTION = re.compile(_SECTION % rb"[a-z]+", re.DOTALL)
# Sections stand before this heading, which every card has.
_FOLLOWING = b"## Members\n"
_MARKS = (
    *("added by push", "end of what push added"),
    *("added by meteora-registry push", "end of the evaluation"),
)
_FENCE = re.compile(r"`{3,}")
_KEPT = "\n\t"


def is_same_card(card: bytes, listed: Digest) -> bool:
    """Return whether a card is the listed one, sections and an evaluation that were added to it aside."""
    # Sections first: a text in one could look like an evaluation.
    rest = without_evaluation(_ANY_SECTION.sub(b"", card))
    return listed in {Digest.of_bytes(card), Digest.of_bytes(rest)}


def with_section(card: bytes, name: str, text: str) -> bytes:
    """Return a card with a section of this name, in place of one that it has.

    Raises:
        DataRefused: the text has the mark that ends a section, or the card has no place for one.
    """
    if found := [mark for mark in _MARKS if mark in text]:
        raise DataRefused(f"the text for the card has `{found[0]}`, which marks what was added to a card")
    rest = re.sub(_SECTION % name.encode(), b"", card, flags=re.DOTALL)
    before, heading, after = rest.partition(_FOLLOWING)
    if not heading:
        raise DataRefused("the card has no heading `## Members`, before which a section is put")
    section = f"{_START.format(name)}\n{text.strip()}\n{_END}\n\n".encode()
    return before + section + heading + after


def render_examples(examples: Sequence[Example]) -> str:
    """Return the section of a publisher's examples, every text in a block that shows it as it is."""
    parts = ["## Examples\n\nChosen by the publisher; nothing here checks them."]
    parts += [f"Prompt:\n\n{_block(each.prompt)}\n\nAnswer:\n\n{_block(each.response)}" for each in examples]
    return "\n\n".join(parts)


def _block(text: str) -> str:
    fence = "`" * max(3, *(len(found) + 1 for found in _FENCE.findall(text)), 3)
    shown = "".join(c if c.isprintable() or c in _KEPT else f"\\u{ord(c):04x}" for c in _lines(text))
    return f"{fence}text\n{shown}\n{fence}"


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").strip("\n")
