"""Column types that mean the same on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime, Dialect, String, Text
from sqlalchemy.types import TypeDecorator, TypeEngine

from ...schemas.digest import Digest

MAX_FOREIGN_CHARACTERS = 1024
MAX_DTYPES_CHARACTERS = 64


class DigestText(TypeDecorator[Digest]):
    """A SHA-256 digest as 64 hexadecimal digits."""

    impl = String(64)
    cache_ok = True

    def process_bind_param(self, value: Digest | None, dialect: Dialect) -> str | None:
        """Return the digits."""
        return None if value is None else str(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Digest | None:
        """Return the digest; ``ValueError`` if the column holds anything else."""
        return None if value is None else Digest(value)


class ForeignText(TypeDecorator[str]):
    """Text from outside, such as a base's name in a config.

    At most 1024 characters are kept; what no database can hold, a zero character or half a surrogate
    pair, becomes U+FFFD. The bytes themselves are in the content store.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Return the text as it can be stored."""
        return None if value is None else clean_foreign_text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        """Return the text as it was stored."""
        return None if value is None else str(value)


class DtypesText(TypeDecorator[tuple[str, ...]]):
    """The element types of an adapter's factors, separated by spaces; null for an adapter without factors."""

    impl = String(MAX_DTYPES_CHARACTERS)
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Dialect) -> str | None:
        """Return the text."""
        return " ".join(value) if value else None

    def process_result_value(self, value: Any, dialect: Dialect) -> tuple[str, ...]:
        """Return the element types."""
        return tuple((value or "").split())


class UtcDateTime(TypeDecorator[datetime]):
    """A moment, always in UTC, because SQLite does not store a time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the moment in UTC."""
        return None if value is None else value.astimezone(UTC)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], datetime | None]:
        """Return what reads the column; ``ValueError`` if it holds anything else than a moment."""
        read = super().result_processor(dialect, coltype) or (lambda value: value)

        def checked(value: Any) -> datetime | None:
            try:
                return read(value)
            except (TypeError, ValueError) as error:
                # SQLite makes a number of what looks like one.
                raise ValueError(f"`{str(value)[:80]}` is not a moment") from error

        return checked

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Return the moment in UTC."""
        if value is None:
            return None
        moment: datetime = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        return moment.astimezone(UTC)


def ordered_text(max_characters: int) -> TypeEngine[str]:
    """Return a text type that sorts by code points, as SQLite does, whatever the database's language."""
    return String(max_characters).with_variant(String(max_characters, collation="C"), "postgresql")


def clean_foreign_text(text: str) -> str:
    """Return a text as ``ForeignText`` stores it."""
    cut = text[:MAX_FOREIGN_CHARACTERS].replace("\0", "\ufffd")
    return "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in cut)
