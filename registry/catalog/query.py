"""The question of a search: its conditions and words; and the pages of its answer, with their cursors.

Text is searched by words: runs of letters and digits, whatever the case or the spelling.
``meta-llama/Llama-3.1-8B`` has the words ``meta``, ``llama``, ``3``, ``1`` and ``8b``.

A cursor is an opaque text with the sort key of a page's last row, and a fingerprint of the question. It is a
key and not a count of rows, so that none is repeated or left out when rows are added or removed before it.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import islice
from typing import Any, Generic, TypeVar

from ...schemas.digest import Digest
from ...schemas.document import load_json
from ...schemas.errors import InvalidDocument, UsageError
from ...schemas.names import check_name

MAX_PAGE = 1000
MAX_WORD_CHARACTERS = 64
# More than any real adapter has; a hostile one cannot fill the index.
MAX_WORDS = 256
# Of tags, targets and words: each is a condition of its own.
MAX_CONDITIONS = 20
# The largest number that both databases hold in 64 bits.
_MAX_INTEGER = 2**63 - 1
_WORD = re.compile(r"[^\W_]+")
_MAX_CURSOR_CHARACTERS = 1024
_FINGERPRINT_CHARACTERS = 12
_CURSOR_HINT = "take the cursor that was printed with the page before, with the same filters and order"

Item = TypeVar("Item")
Key = tuple[Any, ...]


class Order(StrEnum):
    """The key that orders the answers; equal ones by the order in which they were added."""

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
    """Conditions that an adapter version has to meet all together; None or empty states none.

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
        """Return the words of the text."""
        return words_of([self.text])

    @property
    def question(self) -> tuple[object, ...]:
        """Return what the pages of one search have in common."""
        fields = (field.name for field in dataclasses.fields(self))
        return tuple(getattr(self, name) for name in fields if name not in ("limit", "after"))


def _check_range(what: str, low: int | None, high: int | None) -> None:
    for bound in (low, high):
        if bound is not None and not 0 <= bound <= _MAX_INTEGER:
            raise UsageError(f"the {what} {bound} is out of range")
    if low is not None and high is not None and low > high:
        raise UsageError(f"no {what} is at least {low} and at most {high}")


def words_of(texts: Iterable[str | None]) -> tuple[str, ...]:
    """Return the different words of some texts in their order: at most 256, each cut to 64 characters."""
    found = (
        word[:MAX_WORD_CHARACTERS]
        for text in texts
        if text is not None
        for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    )
    return tuple(islice(dict.fromkeys(found), MAX_WORDS))


def encode_cursor(question: Sequence[object], key: Key) -> str:
    """Return the cursor of the row with this sort key in the answer to a question."""
    content = json.dumps([_fingerprint(question), *key], separators=(",", ":"))
    return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")


def decode_cursor(cursor: str, question: Sequence[object], shape: Sequence[type[str] | type[int]]) -> Key:
    """Return the sort key in a cursor, of the types in ``shape``.

    Raises:
        UsageError: it is not a cursor, or it belongs to another question.
    """
    values = _read_cursor(cursor)
    if values is None or tuple(map(type, values)) != (str, *shape) or not all(map(_can_be_asked, values)):
        raise not_a_cursor(cursor)
    fingerprint, *key = values
    if fingerprint != _fingerprint(question):
        raise UsageError(
            "the cursor belongs to a search with other filters or another order", hint=_CURSOR_HINT
        )
    return tuple(key)


def not_a_cursor(cursor: str) -> UsageError:
    """Return the error for a text that is not a cursor of the page."""
    return UsageError(f"`{cursor[:80]}` is not a cursor of such a page", hint=_CURSOR_HINT)


def _read_cursor(cursor: str) -> list[Any] | None:
    # A cursor is in ASCII; the decoder raises an error of another kind for anything else.
    if len(cursor) > _MAX_CURSOR_CHARACTERS or not cursor.isascii():
        return None
    try:
        content = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        values = load_json(content, what="cursor")
    except (binascii.Error, ValueError, InvalidDocument):
        return None
    return values if isinstance(values, list) else None


def _can_be_asked(value: str | int) -> bool:
    """Return whether every database accepts the value in a statement."""
    return "\0" not in value if isinstance(value, str) else -(2**63) <= value < 2**63


def _fingerprint(question: Sequence[object]) -> str:
    return Digest.of_bytes(repr(tuple(question)).encode())[:_FINGERPRINT_CHARACTERS]
