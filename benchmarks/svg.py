"""Figures as text, not by a plotting library, so that the same rows give the same bytes everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from benchmarks.pages import percent

BLUE, GREY, DARK = "#2f6db5", "#a9b8c9", "#222"
_WIDTH, _ROW, _LEFT, _BAR = 760, 26, 330, 320


def drawing(width: int, height: int, title: str, lines: Sequence[str]) -> str:
    """Return an SVG with a title above its lines; sizes are in pixels."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" font-family="sans-serif" font-size="13" fill="{DARK}">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            f'<text x="{width // 2}" y="24" text-anchor="middle">{escape(title)}</text>',
            *lines,
            "</svg>\n",
        ]
    )


def bars(title: str, shown: Sequence[tuple[str, float, tuple[float, float]]], blue: int) -> str:
    """Return a drawing with a bar for each share of 1, and a line for its interval.

    Args:
        title: above the bars.
        shown: words, share and interval of each, from the top.
        blue: the number of the blue bar, from 0; the others are grey.
    """
    lines = [
        line
        for place, (words, share, interval) in enumerate(shown)
        for line in _bar(place, words, share, interval, BLUE if place == blue else GREY)
    ]
    return drawing(_WIDTH, 44 + _ROW * len(shown) + 8, title, lines)


def _bar(place: int, words: str, share: float, interval: tuple[float, float], colour: str) -> list[str]:
    top = 40 + place * _ROW
    middle = top + _ROW / 2
    low, high = (_LEFT + _BAR * bound for bound in interval)
    text = middle + 4.5
    return [
        f'<text x="{_LEFT - 8}" y="{text}" text-anchor="end">{escape(words)}</text>',
        f'<rect x="{_LEFT}" y="{top + 4}" width="{_BAR * share:.1f}" height="{_ROW - 8}" fill="{colour}"/>',
        f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="{DARK}" stroke-width="1.5"/>',
        f'<text x="{max(high, _LEFT + _BAR * share) + 8:.1f}" y="{text}">{percent(share)}</text>',
    ]
