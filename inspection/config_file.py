"""The bytes of a config, and what they parse to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..schemas.document import MAX_CONFIG_BYTES, load_json
from ..schemas.errors import InvalidDocument


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A config's bytes, at most one more than is allowed; parsed, or with what is wrong with them."""

    data: bytes
    value: Any = None
    problem: str | None = None

    @classmethod
    def parse(cls, data: bytes) -> ConfigFile:
        """Parse a config's bytes."""
        try:
            return cls(data, value=load_json(data, what="adapter_config.json"))
        except InvalidDocument as error:
            return cls(data, problem=error.message)

    @property
    def is_too_large(self) -> bool:
        """Whether the file is larger than any config."""
        return len(self.data) > MAX_CONFIG_BYTES
