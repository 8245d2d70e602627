"""LoRA factors as tensors, read one at a time from where they lie in a safetensors file."""

from __future__ import annotations

import math
import os
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import torch
from torch import Tensor

from ..files.digests import hash_chunks, read_chunks
from ..files.reading import open_regular
from ..inspection.header import Header, TensorEntry
from ..schemas.digest import Digest
from ..schemas.errors import SourceUnreadable
from ..schemas.inventory import Dtype

TORCH_DTYPES = {
    Dtype.F64: torch.float64,
    Dtype.F32: torch.float32,
    Dtype.F16: torch.float16,
    Dtype.BF16: torch.bfloat16,
}


class TensorFile:
    """An open safetensors file whose header was already checked; holds no tensor in memory."""

    def __init__(self, path: Path, header: Header) -> None:
        self._file = cast(BufferedReader, open_regular(path, follows_links=True))
        self._path = path
        self._entries = {entry.name: entry for entry in header.tensors}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def size_bytes(self) -> int:
        """The size of the file."""
        return os.fstat(self._file.fileno()).st_size

    def sha256(self) -> Digest:
        """Return the digest of the whole file.

        Raises:
            SourceUnreadable: it cannot be read.
        """
        self._file.seek(0)
        try:
            return hash_chunks(read_chunks(self._file))
        except OSError as error:
            raise SourceUnreadable(f"cannot read `{self._path}`: {error.strerror or error}") from error

    def read_start(self, count: int) -> bytes:
        """Return the first bytes of the file, fewer where it is shorter."""
        self._file.seek(0)
        return self._file.read(count)

    def read(self, name: str) -> Tensor:
        """One tensor, in its own shape and element type.

        Raises:
            SourceUnreadable: the file is shorter than its header says.
        """
        entry = self._entries[name]
        return self._read(entry, entry.begin, entry.shape)

    def read_rows(self, name: str, rows: slice) -> Tensor:
        """The rows ``rows.start`` to ``rows.stop`` of a matrix; the others are not read.

        Raises:
            SourceUnreadable: the file is shorter than its header says.
        """
        entry = self._entries[name]
        row_bytes = (entry.end - entry.begin) // entry.shape[0]
        shape = (rows.stop - rows.start, *entry.shape[1:])
        return self._read(entry, entry.begin + rows.start * row_bytes, shape)

    def _read(self, entry: TensorEntry, begin: int, shape: tuple[int, ...]) -> Tensor:
        dtype = TORCH_DTYPES[Dtype(entry.dtype)]
        data = bytearray(math.prod(shape) * dtype.itemsize)
        self._file.seek(begin)
        if self._file.readinto(data) != len(data):
            raise SourceUnreadable(f"`{self._path}` ends inside the tensor `{entry.name}`: the file was cut")
        return torch.frombuffer(data, dtype=dtype).reshape(shape)


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
