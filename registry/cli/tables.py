"""Tables for people: fitted to the terminal by leaving out and shortening, never by folding a cell.

Where stdout is not a terminal, and with ``--wide``, a table is whole: every column, every cell.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import click

from .output import escape
from .parameters import is_wide, offers_wide

if TYPE_CHECKING:
    from rich.text import Text

EMPTY = "-"
_GAP = 2
# What is left of a cell that is shortened: enough to tell `meta-llama/Llama-3.1-8B` from another Llama.
_SHORTEST = 12
# One word of status, by what it asks of the reader: nothing, a look, or something to be done.
_COLOURS = {
    "fusable": "green",
    "intact": "green",
    "pass": "green",
    "sound": "yellow",
    "unverified": "yellow",
    "inconclusive": "yellow",
    "fail": "red",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Args:
        header: its title.
        is_number: whether its cells are aligned at the right.
        gives_way: 0 for what tells rows apart, which is always shown and whole. Otherwise the column may be
            left out where every cell is the same, unless it ``stays``; and where the terminal is too narrow
            those with the largest number are shortened, and then left out, first.
        stays: whether it is shown where every cell is the same, because a reader compares it with another.
    """

    header: str
    is_number: bool = False
    gives_way: int = 0
    stays: bool = False


def number(header: str, gives_way: int = 0) -> Column:
    """Return a column of numbers."""
    return Column(header, is_number=True, gives_way=gives_way)


@dataclass(eq=False)
class _Filled:
    """A column with its cells, which are escaped."""

    column: Column
    cells: Sequence[str]

    @property
    def gives_way(self) -> int:
        return self.column.gives_way

    @property
    def title(self) -> str:
        return self.column.header.lower()

    @cached_property
    def width(self) -> int:
        return max(map(_width_of, (self.column.header, *self.cells)))

    @property
    def shortest(self) -> int:
        """How narrow it may become."""
        if not self.gives_way or self.column.is_number:
            return self.width
        return min(self.width, max(_SHORTEST, len(self.column.header)))

    @property
    def is_one_value(self) -> bool:
        known = set(self.cells)
        if self.column.stays or not self.gives_way:
            return False
        return known == {EMPTY} or (len(known) == 1 and len(self.cells) > 1)


def print_table(columns: Sequence[Column | str], rows: Sequence[Sequence[str]], *, total: str = "") -> None:
    """Print a table, and on a terminal a last line with what all rows share and the total.

    Args:
        columns: a text is a column that is always shown.
        rows: the cells of each row; a value that is not known is a dash.
        total: how many rows of what there are, for the last line.
    """
    known = [Column(each) if isinstance(each, str) else each for each in columns]
    escaped = [[escape(cell) for cell in row] for row in rows]
    if sys.stdout.isatty() and not is_wide():
        _print_fitted(known, escaped, total)
    else:
        _print_whole(known, escaped)


def _print_whole(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    filled = [_Filled(column, cells) for column, *cells in zip(columns, *rows, strict=True)]
    for row in ([column.header for column in columns], *rows):
        line = []
        for cell, each in zip(row, filled, strict=True):
            space = " " * (each.width - _width_of(cell))
            line.append(space + cell if each.column.is_number else cell + space)
        click.echo((" " * _GAP).join(line).rstrip())


def _width_of(text: str) -> int:
    """Return how many cells of a terminal a text takes; rich is imported only where that may differ."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    # A letter of Chinese is two cells wide, a combining accent none.
    return cell_len(text)


def _print_fitted(columns: Sequence[Column], rows: Sequence[Sequence[str]], total: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    filled = [_Filled(column, cells) for column, *cells in zip(columns, *rows, strict=True)]
    shared = [each for each in filled if each.is_one_value]
    widths, left_out = _fit([each for each in filled if each not in shared], console.width)
    lines = [[Text(each.column.header, style="bold") for each in widths]]
    for index in range(len(rows)):
        lines.append([_cell(each.cells[index], width) for each, width in widths.items()])
    for line in lines:
        for cell, (each, width) in zip(line, widths.items(), strict=True):
            cell.align("right" if each.column.is_number else "left", width)
        text = Text(" " * _GAP).join(line)
        text.rstrip()
        # Where even the names are wider than the terminal, it breaks the line, and nothing is lost.
        console.print(text, soft_wrap=True)
    if note := _last_line(total, shared, left_out):
        console.print(Text(note, style="dim"))


def _fit(filled: Sequence[_Filled], room: int) -> tuple[dict[_Filled, int], list[_Filled]]:
    """Return the widths with which the columns fit into the room, and the columns that are left out."""
    by_weight = sorted(filled, key=lambda each: each.gives_way)
    kept: list[_Filled] = []
    for each in by_weight:
        if not each.gives_way or _needed(other.shortest for other in (*kept, each)) <= room:
            kept.append(each)
    widths = {each: each.width for each in filled if each in kept}
    for each in reversed(kept):
        excess = _needed(widths.values()) - room
        widths[each] = max(each.shortest, each.width - max(excess, 0))
    return widths, [each for each in filled if each not in kept]


def _needed(widths: Iterable[int]) -> int:
    known = list(widths)
    return sum(known) + _GAP * (len(known) - 1)


def _cell(text: str, width: int) -> Text:
    from rich.text import Text

    return Text(shorten(text, width), style=_COLOURS.get(text, ""))


def shorten(text: str, width: int) -> str:
    """Return a text in at most ``width`` cells of a terminal; a longer one gets an ellipsis in its middle."""
    from rich.cells import set_cell_size

    if _width_of(text) <= width:
        return text
    sign = "…" if (sys.stdout.encoding or "").lower().startswith("utf") else "~"
    tail = (width - 1) // 2
    head = width - 1 - tail
    return set_cell_size(text, head).rstrip() + sign + set_cell_size(text[::-1], tail)[::-1].lstrip()


def _last_line(total: str, shared: Sequence[_Filled], left_out: Sequence[_Filled]) -> str:
    parts = [total] if total else []
    if facts := [f"{each.title} {each.cells[0]}" for each in shared if each.cells[0] != EMPTY]:
        parts.append(f"all: {', '.join(facts)}")
    if left_out:
        titles = ", ".join(each.title for each in left_out)
        parts.append(f"--wide also shows {titles}" if offers_wide() else f"no room for {titles}")
    return "; ".join(parts)
