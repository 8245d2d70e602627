"""Safetensors files read and written tensor by tensor: memory holds one module, never the whole bundle."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import torch
from torch import Tensor

from ..files.digests import Hasher, hash_chunks, read_chunks
from ..files.reading import open_regular, read_errors
from ..inspection.header import Header, TensorEntry
from ..schemas.bundle import TensorSpec
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
        with read_errors(self._path):
            return hash_chunks(read_chunks(self._file))

    def read_start(self, count: int) -> bytes:
        """Return the first bytes of the file, fewer where it is shorter."""
        self._file.seek(0)
        return self._file.read(count)

    def read(self, name: str) -> Tensor:
        """Read one tensor, in its own shape and element type.

        Raises:
            SourceUnreadable: the file is shorter than its header states.
        """
        entry = self._entries[name]
        return self._read(entry, entry.begin, entry.shape)

    def read_rows(self, name: str, rows: slice) -> Tensor:
        """Read the rows ``rows.start`` to ``rows.stop`` of a matrix, and no others.

        Raises:
            SourceUnreadable: the file is shorter than its header states.
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


def first_difference(header: Header, specs: Sequence[TensorSpec]) -> str | None:
    """Return how the first tensor by name differs from what a file should have; None where all are alike."""
    found = {entry.name: (entry.dtype, entry.shape) for entry in header.tensors}
    expected = {spec.name: (spec.dtype.value, spec.shape) for spec in specs}
    differing = sorted(name for name in found | expected if found.get(name) != expected.get(name))
    if not differing:
        return None
    name = differing[0]
    was, wanted = (
        f"{each[name][0]} {list(each[name][1])}" if name in each else "" for each in (found, expected)
    )
    return f"`{name}` is {was or 'missing'}, expected {wanted or 'nothing of that name'}"


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor, without a copy."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


_HEADER_ALIGNMENT = 8


class WeightsWriter:
    """A writer of one file: the header for ``specs`` first, then the tensors in that order.

    The digest is of everything written, so the file is not read again.
    """

    def __init__(self, path: Path, specs: Sequence[TensorSpec], *, metadata: dict[str, str]) -> None:
        self._specs = iter(specs)
        self._hasher = Hasher()
        self._file = path.open("xb")
        self._append(_header_bytes(specs, metadata))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None and (missing := next(self._specs, None)) is not None:
            raise ValueError(f"`{missing.name}` is in the header and was never written")

    @property
    def sha256(self) -> Digest:
        """The digest of what was written so far."""
        return self._hasher.digest

    @property
    def size_bytes(self) -> int:
        """The number of bytes that were written so far."""
        return self._hasher.size_bytes

    def write(self, name: str, tensor: Tensor) -> None:
        """Append the next tensor of the header.

        Raises:
            ValueError: it is not the next one, or not of the promised shape and element type.
        """
        spec = next(self._specs, None)
        found = (name, tensor.dtype, tuple(tensor.shape))
        if spec is None or found != (spec.name, TORCH_DTYPES[spec.dtype], spec.shape):
            raise ValueError(f"the header promises {spec}, found {found}")
        self._append(bytes_of(tensor))

    def _append(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hasher.update(data)


def _header_bytes(specs: Sequence[TensorSpec], metadata: dict[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for spec in specs:
        end = offset + spec.size_bytes
        header[spec.name] = {"dtype": spec.dtype.value, "shape": spec.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def relative_loss(tensor: Tensor, rounded: Tensor) -> float:
    """Return the largest difference that a cast made, over the largest magnitude; inf where it overflowed."""
    difference = (rounded.to(torch.float64) - tensor.to(torch.float64)).abs().max().item()
    if not math.isfinite(difference):
        return math.inf
    return difference / tensor.abs().max().item() if difference > 0 else 0.0
