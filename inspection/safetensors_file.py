"""The stages in which a safetensors file is read: its first bytes, its header text, its entries.

Each stage is checked by its rules before the next one begins, so nothing is parsed, let alone
allocated, on the strength of a number that has not been checked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 8 << 20
# An adapter of every linear layer of Qwen3 with 128 experts in 48 layers has 37 248.
MAX_TENSORS = 42_000
START_BYTES = 512
# The beginning of a git-lfs pointer, which replaces the file itself in a clone.
LFS_START = b"version https://git-lfs.github.com/spec/"
METADATA = "__metadata__"
# Bits of one element. The names are those of the format, including what no adapter may hold.
DTYPE_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: the position of its bytes in the file, ``begin`` to ``end``, and how they are read."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size_bytes(self) -> int:
        """The number of bytes of the tensor."""
        return self.end - self.begin

    @property
    def elements(self) -> int:
        """The number of elements of the shape."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, slots=True)
class FileStart:
    """The first bytes of a weights file, and the size of the whole."""

    first: bytes
    file_bytes: int

    @property
    def header_bytes(self) -> int:
        """The length that the file declares for its header."""
        return int.from_bytes(self.first[:LENGTH_BYTES], "little")


@dataclass(frozen=True, slots=True)
class HeaderText:
    """The header's bytes with the parsed value or the problem."""

    text: bytes
    value: Any = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class HeaderEntries:
    """The parsed header beside the size of the data: entries as declared, none checked yet."""

    declared: dict[str, Any]
    metadata: Any
    data_bytes: int
    problems: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """Well-formed entries in the order of their bytes; the data begins at ``data_start`` of the file."""

    tensors: tuple[TensorEntry, ...]
    data_start: int
    data_bytes: int
