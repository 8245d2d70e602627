"""What adapters are searched by, and the pages in which answers come."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Generic, TypeVar

from ...schemas.errors import UsageError
from ...schemas.names import check_name
from .words import words_of

MAX_PAGE = 1000
# Of tags, targets and words: each is a condition of its own.
MAX_CONDITIONS = 20
# The largest number that both databases hold in 64 bits.
_MAX_INTEGER = 2**63 - 1

Item = TypeVar("Item")


class Order(StrEnum):
    """What the answers are ordered by; equal ones by the order in which they were added."""

    NAME = "name"
    DATE = "date"
    SIZE = "size"
    RANK = "rank"


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Some answers, and the cursor after which the next page begins; None on the last page."""

    items: tuple[Item, ...]
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterQuery:
    """Conditions that an adapter version has to meet all together; None or empty is no condition.

    Attributes:
        base: the base model, in any spelling that the catalog has learned.
        min_rank, max_rank: bounds, both included, of the largest rank in the adapter; with one of them
            set, adapters without LoRA factors are left out.
        targets: kinds of modules, such as ``q_proj``, each of which it touches.
        tags: each of which the version has.
        license: as the adapter states it.
        sound, fusable: the verdicts.
        min_bytes, max_bytes: bounds, both included, of the size of the weights.
        added_from, added_before: when it was added, the first bound included, the second not.
        text: words; each begins some word of the name, the tags, the origin, the base, the license or
            the task.
        all_versions: judge every version, and not only the latest of each name.
        order: what the answers are ordered by.
        descending: the largest, the youngest, or the last in the alphabet first.
        limit: answers on a page, 1 to 1000.
        after: the cursor of the page before.

    Raises:
        UsageError: a bound, a tag, the text or the limit can never be met or read.
    """

    base: str | None = None
    min_rank: int | None = None
    max_rank: int | None = None
    targets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    license: str | None = None
    sound: bool | None = None
    fusable: bool | None = None
    min_bytes: int | None = None
    max_bytes: int | None = None
    added_from: datetime | None = None
    added_before: datetime | None = None
    text: str | None = None
    all_versions: bool = False
    order: Order = Order.NAME
    descending: bool = False
    limit: int = 50
    after: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MAX_PAGE:
            raise UsageError(f"a page of {self.limit} adapters, expected 1 to {MAX_PAGE}")
        for tag in self.tags:
            check_name(tag, what="tag")
        _check_range("rank", self.min_rank, self.max_rank)
        _check_range("size", self.min_bytes, self.max_bytes)
        for moment in (self.added_from, self.added_before):
            if moment is not None and moment.utcoffset() is None:
                raise UsageError(f"`{moment}` has no time zone", hint="such as `2026-05-01T12:00:00+00:00`")
        if self.text is not None and not self.words:
            raise UsageError(
                f"{self.text[:80]!r} has no word to search for", hint="a word is letters and digits"
            )
        if len(self.tags) + len(self.targets) + len(self.words) > MAX_CONDITIONS:
            raise UsageError(f"more than {MAX_CONDITIONS} words, tags and targets in one search")

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the text."""
        return words_of([self.text])

    @property
    def question(self) -> tuple[object, ...]:
        """What the pages of one search have in common."""
        fields = (field.name for field in dataclasses.fields(self))
        return tuple(getattr(self, name) for name in fields if name not in ("limit", "after"))


def _check_range(what: str, low: int | None, high: int | None) -> None:
    for bound in (low, high):
        if bound is not None and not 0 <= bound <= _MAX_INTEGER:
            raise UsageError(f"the {what} {bound} is out of range")
    if low is not None and high is not None and low > high:
        raise UsageError(f"no {what} is at least {low} and at most {high}")
