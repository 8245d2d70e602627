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

EXAMPLES, EVALUATION = "examples", "evaluation"
_SECTIONS = EXAMPLES, EVALUATION
# In the text and in the front matter.
_BEGIN, _END = "\n<!-- added by push: {} -->\n", "\n<!-- end of what push added -->\n\n"
_FRONT_BEGIN, _FRONT_END = "# added by push: {}\n", "# end of what push added\n"
_MARKS = tuple(
    f"{start} {text}" for start in ("<!--", "#") for text in ("added by push:", "end of what push")
)
# Sections stand before this heading, which every card has that was written with a bundle.
_FOLLOWING = b"## Members\n"
_FENCE = re.compile(r"`{3,}")
_KEPT = "\n\t"


def is_same_card(card: bytes, listed: Digest) -> bool:
    """Return whether a card is the listed one, sections that were added to it aside."""
    return listed in {Digest.of_bytes(card), Digest.of_bytes(without_sections(card))}


def without_sections(card: bytes) -> bytes:
    """Return a card without what ``with_section`` added; any other card is returned as it is."""
    for name in _SECTIONS:
        card = without_section(card, name)
    return card


def without_section(card: bytes, name: str) -> bytes:
    """Return a card without the section of this name."""
    for begin, end in (_BEGIN, _END), (_FRONT_BEGIN, _FRONT_END):
        before, mark, rest = card.partition(begin.format(name).encode())
        _, end_mark, after = rest.partition(end.encode())
        if mark and end_mark:
            card = before + after
    return card


def with_section(card: bytes, name: str, text: str, *, front_matter: str = "") -> bytes:
    """Return a card with a section of this name, in place of one that it has.

    Args:
        card: the card.
        name: `EXAMPLES` or `EVALUATION`.
        text: Markdown; before the members, or at the end of a card that lists none.
        front_matter: whole lines of YAML for the card's front matter, if it has one.

    Raises:
        DataRefused: the text has a mark of a section.
    """
    if found := [mark for mark in _MARKS if mark in text or mark in front_matter]:
        raise DataRefused(f"the text for the card has `{found[0]}`, which marks what was added to a card")
    card = without_section(card, name)
    end_of_front = card.find(b"\n---\n", 3) + 1 if card.startswith(b"---\n") else 0
    if front_matter and end_of_front:
        lines = _FRONT_BEGIN.format(name) + front_matter + _FRONT_END
        card = card[:end_of_front] + lines.encode() + card[end_of_front:]
    # After the other sections: their texts may have the heading, too.
    place = card.find(_FOLLOWING, card.rfind(_END.encode()) + 1)
    place = len(card) if place < 0 else place
    return card[:place] + (_BEGIN.format(name) + text.strip() + _END).encode() + card[place:]


def render_examples(examples: Sequence[Example]) -> str:
    """Return the section of a publisher's examples, every text in a block that shows it as it is."""
    parts = ["## Examples\n\nChosen by the publisher; nothing here checks them."]
    parts += [f"Prompt:\n\n{_block(each.prompt)}\n\nAnswer:\n\n{_block(each.response)}" for each in examples]
    return "\n\n".join(parts)


def _block(text: str) -> str:
    fence = "`" * max([3, *(len(found) + 1 for found in _FENCE.findall(text))])
    lines = text.replace("\r\n", "\n").strip("\n")
    shown = "".join(c if c.isprintable() or c in _KEPT else f"\\u{ord(c):04x}" for c in lines)
    return f"{fence}text\n{shown}\n{fence}"
