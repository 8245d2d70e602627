"""The evaluation that ``push`` adds to a bundle's card, in two marked places that can be taken out again.

A card is listed in the manifest, which was written before anything could be evaluated. So a card with these
two places is still the one that the manifest lists, and what they state is a claim of its publisher.
"""

from __future__ import annotations

import re

_FRONT = b"# evaluation, added by meteora-registry push\n", b"# end of the evaluation\n"
_BODY = b"\n<!-- evaluation, added by meteora-registry push -->\n", b"<!-- end of the evaluation -->\n"
_FRONT_MATTER = re.compile(rb"---\n(?:.*\n)*?(?=---\n)")


def without_evaluation(card: bytes) -> bytes:
    """Return a card without what ``with_evaluation`` added; any other card is returned as it is."""
    for begin, end in (_FRONT, _BODY):
        start = card.find(begin)
        stop = card.find(end, start)
        if start >= 0 and stop >= 0:
            card = card[:start] + card[stop + len(end) :]
    return card


def with_evaluation(card: bytes, front: str, section: str) -> bytes:
    """Return a card with an evaluation in its front matter, if it has one, and at its end.

    Args:
        card: what was added to it before is replaced.
        front: whole lines of YAML.
        section: whole lines of Markdown.
    """
    card = without_evaluation(card)
    found = _FRONT_MATTER.match(card)
    if found is not None:
        card = card[: found.end()] + _FRONT[0] + front.encode() + _FRONT[1] + card[found.end() :]
    return card + _BODY[0] + section.encode() + _BODY[1]
