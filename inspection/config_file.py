"""The bytes of a config, and the value they parse to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..schemas.document import load_json
from ..schemas.errors import InvalidDocument

# The largest one known of a public adapter has two thousand bytes.
MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A config's bytes, at most one more than is allowed, with the parsed value or the problem."""

    data: bytes
    value: Any = None
    problem: str | None = None

    @classmethod
    def parse(cls, data: bytes) -> ConfigFile:
        """Parse a config's bytes."""
        try:
            return cls(data, value=load_json(data, what="adapter_config.json", max_bytes=MAX_CONFIG_BYTES))
        except InvalidDocument as error:
            return cls(data, problem=error.message)

    @property
    def is_too_large(self) -> bool:
        """Whether the file is larger than any config."""
        return len(self.data) > MAX_CONFIG_BYTES
