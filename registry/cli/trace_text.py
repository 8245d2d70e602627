"""A trace on a terminal: runs of tokens, each marked with its member's letter and, where it can be, colour.

The letters carry the same information as the colours, so nothing is lost in a file, in a pipe, or to a reader
who cannot distinguish the colours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby

import click

from ...runtime.tracing.display import colour_of, leading_members, letter_of, token_shares
from ...schemas.trace import NO_MEMBER, Trace
from .output import escape, print_facts, print_line

_BLACK = (0, 0, 0)


def print_trace(trace: Trace) -> None:
    """Print the facts, a legend with each member's share, and the marked text of prompt and answer."""
    shares = token_shares(trace)
    leading = leading_members(shares)
    answer_tokens = len(trace.tokens) - trace.prompt_length
    print_facts(
        [
            ("bundle", trace.bundle),
            ("base", trace.base),
            ("scope", trace.scope),
            ("tokens", f"{trace.prompt_length} of the prompt, {answer_tokens} of the answer"),
            ("modules", str(len(trace.modules))),
        ]
    )
    for each in trace.decisions:
        served = ", ".join(each.members) or "left to the base"
        print_line(
            f"decided  tokens {each.start} to {each.end - 1}: {served}, confidence {each.confidence:.2f}"
        )
    print_line()
    colours = colours_wanted()
    _print_legend(trace.members, [float(share) for share in shares.mean(axis=0)], colours=colours)
    for title, generated in (("prompt", False), ("answer", True)):
        marked = [
            (member, token.text)
            for member, token in zip(leading, trace.tokens, strict=True)
            if token.generated is generated
        ]
        click.echo(f"\n{title}:\n{''.join(_mark_runs(marked, colours=colours))}", color=colours)


def colours_wanted() -> bool:
    """Return whether stdout shows colours: a terminal that is not `dumb`, and ``NO_COLOR`` is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _print_legend(members: Sequence[str], mean: Sequence[float], *, colours: bool) -> None:
    # Tokens that no member took have a line only if there are any.
    rows = [*enumerate(members), *([(NO_MEMBER, "no member")] if mean[-1] > 0 else [])]
    width = max(len(letter_of(member)) for member, _ in rows)
    longest = max(len(name) for _, name in rows)
    for member, name in rows:
        mark = _paint(letter_of(member).ljust(width), member, colours=colours)
        click.echo(f"{mark}  {name.ljust(longest)}  {mean[member]:6.1%}", color=colours)


def _mark_runs(tokens: Sequence[tuple[int, str]], *, colours: bool) -> Iterator[str]:
    for member, run in groupby(tokens, key=lambda each: each[0]):
        text = "".join(token for _, token in run)
        # A new line is both shown and made; the colour ends before it, or it would fill the whole line.
        lines = [escape(line) for line in text.split("\n")]
        shown = [_paint(line, member, colours=colours) if line else "" for line in lines]
        joined = "\u21b5\n".join(shown)
        # A bracket alone on the next line would look like a line of the text.
        end = "\n" if joined.endswith("\n") else ""
        yield f"[{letter_of(member)}:{joined.removesuffix(end)}]{end}"


def _paint(text: str, member: int, *, colours: bool) -> str:
    if not colours or member == NO_MEMBER:
        return text
    colour = colour_of(member)
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return click.style(text, fg=_BLACK, bg=(red, green, blue))
