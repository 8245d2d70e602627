"""One pass over the weights: their digest, and what their numbers look like.

A float's magnitude orders like its bits, so two integer maxima per chunk (positive and negative
numbers) find the largest magnitude, NaN, infinity and all zeros at once. Chunks are small enough to
stay in the processor's cache; no tensor is ever held whole.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from ..schemas.digest import Digest
from ..schemas.errors import SourceUnreadable
from ..schemas.inventory import Dtype
from .header import Header, open_regular
from .quotation import quote_name
from .safetensors_file import TensorEntry

CHUNK_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Format:
    """How a float lies in memory: its bits as integers, and the bits of infinity."""

    unsigned: npt.DTypeLike
    signed: npt.DTypeLike
    infinity: int
    size_bytes: int


_FORMATS = {
    Dtype.F64: Format(np.uint64, np.int64, 0x7FF0_0000_0000_0000, 8),
    Dtype.F32: Format(np.uint32, np.int32, 0x7F80_0000, 4),
    Dtype.F16: Format(np.uint16, np.int16, 0x7C00, 2),
    Dtype.BF16: Format(np.uint16, np.int16, 0x7F80, 2),
}


@dataclass(frozen=True, slots=True)
class Magnitude:
    """The largest magnitude among a tensor's finite numbers, and whether there are others.

    ``largest`` is infinite if one number is not finite.
    """

    largest: float
    has_nan: bool
    is_finite: bool

    @property
    def is_zero(self) -> bool:
        """Whether every number is zero."""
        return self.is_finite and self.largest == 0


@dataclass(frozen=True, slots=True)
class Scan:
    """What a pass over a weights file found; ``magnitudes`` by tensor name, floats only."""

    sha256: Digest
    magnitudes: dict[str, Magnitude]


class _Digest(Protocol):
    def update(self, data: memoryview, /) -> None: ...


def scan_weights(path: Path, header: Header) -> Scan:
    """Hash a weights file and look at every number in it, in one pass, with a buffer of 256 KiB.

    Raises:
        SourceUnreadable: the file cannot be read, or has changed since its header was.
    """
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            magnitudes = scan_stream(file, header, digest)
    except OSError as error:
        if isinstance(error, SourceUnreadable):
            raise
        raise SourceUnreadable(f"{quote_name(str(path))} cannot be read: {error.strerror}") from error
    return Scan(Digest(digest.hexdigest()), magnitudes)


def scan_stream(file: BinaryIO, header: Header, digest: _Digest | None) -> dict[str, Magnitude]:
    """The magnitudes of all float tensors of a file, hashing it on the way if a digest is given."""
    if os.fstat(file.fileno()).st_size != header.file_bytes:
        raise SourceUnreadable("the weights file has changed while it was read")
    buffer = memoryview(bytearray(CHUNK_BYTES))
    _read(file, buffer, header.data_start, digest, None)
    magnitudes = {}
    for tensor in header.tensors:
        known = tensor.dtype in _FORMATS
        peak = _Peak(_FORMATS[Dtype(tensor.dtype)]) if known else None
        _read(file, buffer, tensor.size_bytes, digest, peak.see if peak else None)
        if peak is not None:
            magnitudes[tensor.name] = peak.magnitude()
    return magnitudes


def read_tensor(file: BinaryIO, entry: TensorEntry) -> npt.NDArray[np.float64]:
    """One tensor of a float dtype as float64; bfloat16 and all others exactly."""
    file.seek(entry.begin)
    return decode(file.read(entry.size_bytes), Dtype(entry.dtype)).reshape(entry.shape)


def decode(data: bytes, dtype: Dtype) -> npt.NDArray[np.float64]:
    """Little-endian numbers as float64, one dimension."""
    if dtype is Dtype.BF16:
        bits = np.frombuffer(data, dtype="<u2").astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32).astype(np.float64)
    name = {Dtype.F64: "<f8", Dtype.F32: "<f4", Dtype.F16: "<f2"}[dtype]
    return np.frombuffer(data, dtype=name).astype(np.float64)


class _Peak:
    """The largest bits seen so far of positive and of negative numbers."""

    def __init__(self, layout: Format) -> None:
        self._layout = layout
        self._positive = 0
        self._negative = 0

    def see(self, chunk: memoryview) -> None:
        """Take a chunk of whole numbers into account."""
        # Negative numbers are negative as signed integers too, and the largest as unsigned ones.
        sign = 1 << (self._layout.size_bytes * 8 - 1)
        self._positive = max(self._positive, int(np.frombuffer(chunk, self._layout.signed).max()))
        self._negative = max(self._negative, int(np.frombuffer(chunk, self._layout.unsigned).max()) - sign)

    def magnitude(self) -> Magnitude:
        """What the bits come to."""
        bits = max(self._positive, self._negative)
        if bits >= self._layout.infinity:
            return Magnitude(float("inf"), has_nan=bits > self._layout.infinity, is_finite=False)
        largest = decode(bits.to_bytes(self._layout.size_bytes, "little"), _dtype_of(self._layout))[0]
        return Magnitude(float(largest), has_nan=False, is_finite=True)


def _dtype_of(layout: Format) -> Dtype:
    return next(dtype for dtype, known in _FORMATS.items() if known is layout)


def _read(
    file: BinaryIO,
    buffer: memoryview,
    count: int,
    digest: _Digest | None,
    see: Callable[[memoryview], None] | None,
) -> None:
    while count:
        chunk = buffer[: min(count, CHUNK_BYTES)]
        # A buffered file fills the chunk unless the end has come.
        if file.readinto(chunk) != len(chunk):  # type: ignore[attr-defined]  # not in typing's BinaryIO
            raise SourceUnreadable("the weights file has changed while it was read")
        if digest is not None:
            digest.update(chunk)
        if see is not None:
            see(chunk)
        count -= len(chunk)
