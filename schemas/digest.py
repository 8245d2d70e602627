"""SHA-256 digests as a type, so that a digest is never taken for a name or a path.

Nothing here opens a file; ``files.digests`` does.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

_HEX = re.compile(r"[0-9a-f]{64}")


class Digest(str):
    """A SHA-256 digest: 64 lower-case hexadecimal digits; ``ValueError`` for anything else."""

    __slots__ = ()

    def __new__(cls, value: str) -> Digest:
        """Return ``value`` as a digest."""
        if not _HEX.fullmatch(value):
            raise ValueError(f"`{value[:80]}` is not a SHA-256 digest of 64 lower-case hexadecimal digits")
        return super().__new__(cls, value)

    @classmethod
    def of_bytes(cls, data: bytes | bytearray | memoryview) -> Digest:
        """Return the digest of ``data``."""
        return cls(hashlib.sha256(data).hexdigest())

    @property
    def short(self) -> str:
        """The first twelve digits, for people."""
        return self[:12]

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls, core_schema.str_schema(), serialization=core_schema.to_string_ser_schema()
        )
