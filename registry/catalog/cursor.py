"""Where a page ended, as an opaque text: the place of its last row, and which question it belongs to.

The place is the row's own sort key, not a count of rows, so that rows which come or go elsewhere
neither repeat nor hide any.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any

from ...schemas.digest import Digest
from ...schemas.document import load_json
from ...schemas.errors import InvalidDocument, UsageError

_MAX_CHARACTERS = 1024
_FINGERPRINT_CHARACTERS = 12
_HINT = "take the cursor that was printed with the page before, with the same filters and order"

Key = tuple[Any, ...]


def encode_cursor(question: Sequence[object], key: Key) -> str:
    """The cursor of the row with this sort key among the answers to a question."""
    content = json.dumps([_fingerprint(question), *key], separators=(",", ":"))
    return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")


def decode_cursor(cursor: str, question: Sequence[object], shape: Sequence[type[str] | type[int]]) -> Key:
    """The sort key in a cursor, of the types in ``shape``.

    Raises:
        UsageError: it is no cursor, or one of another question.
    """
    values = _read(cursor)
    if values is None or tuple(map(type, values)) != (str, *shape) or not all(map(_can_be_asked, values)):
        raise not_a_cursor(cursor)
    fingerprint, *key = values
    if fingerprint != _fingerprint(question):
        raise UsageError("the cursor belongs to a search with other filters or another order", hint=_HINT)
    return tuple(key)


def not_a_cursor(cursor: str) -> UsageError:
    """What is said of a text that cannot be a cursor."""
    return UsageError(f"`{cursor[:80]}` is no cursor of such a page", hint=_HINT)


def _read(cursor: str) -> list[Any] | None:
    # Nothing else stands in one, and what is no ASCII could not even be decoded.
    if len(cursor) > _MAX_CHARACTERS or not cursor.isascii():
        return None
    try:
        content = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        values = load_json(content, what="cursor")
    except (binascii.Error, ValueError, InvalidDocument):
        return None
    return values if isinstance(values, list) else None


def _can_be_asked(value: str | int) -> bool:
    """Whether every database takes the value in a question."""
    return "\0" not in value if isinstance(value, str) else -(2**63) <= value < 2**63


def _fingerprint(question: Sequence[object]) -> str:
    return Digest.of_bytes(repr(tuple(question)).encode())[:_FINGERPRINT_CHARACTERS]
