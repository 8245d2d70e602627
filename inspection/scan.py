"""One pass over the weights: their digest, and the magnitudes of their numbers.

A float's magnitude orders like its bits, so two integer maxima per chunk (positive and negative
numbers) find the largest magnitude, NaN, infinity and all zeros at once. Chunks are small enough to
stay in the processor's cache; no tensor is ever held whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ..files.digests import Hasher
from ..files.reading import open_regular
from ..schemas.digest import Digest
from ..schemas.errors import SourceUnreadable
from ..schemas.inventory import Dtype
from .header import Header
from .safetensors_file import TensorEntry

CHUNK_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Format:
    """The layout of a float in memory: its bits as integers, and the bits of infinity.

    ``padding_bytes`` is how many zero bytes before it make it one of ``struct``'s formats.
    """

    unsigned: npt.DTypeLike
    signed: npt.DTypeLike
    infinity: int
    size_bytes: int
    unpack: Callable[[bytes], tuple[float]]
    padding_bytes: int = 0

    @property
    def sign(self) -> int:
        """The bit that negative numbers have: to an unsigned integer they are the largest."""
        return 1 << (self.size_bytes * 8 - 1)

    def number(self, bits: int) -> float:
        """Return the float of these bits."""
        data = bytes(self.padding_bytes) + bits.to_bytes(self.size_bytes, "little")
        return self.unpack(data)[0]


_FORMATS = {
    Dtype.F64: Format(np.uint64, np.int64, 0x7FF0_0000_0000_0000, 8, Struct("<d").unpack),
    Dtype.F32: Format(np.uint32, np.int32, 0x7F80_0000, 4, Struct("<f").unpack),
    Dtype.F16: Format(np.uint16, np.int16, 0x7C00, 2, Struct("<e").unpack),
    Dtype.BF16: Format(np.uint16, np.int16, 0x7F80, 2, Struct("<f").unpack, padding_bytes=2),
}
_BY_NAME = {str(dtype): layout for dtype, layout in _FORMATS.items()}


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
    """The result of a pass over a weights file; ``magnitudes`` by tensor name, floats only."""

    sha256: Digest
    magnitudes: dict[str, Magnitude]


def scan_weights(path: Path, header: Header) -> Scan:
    """Hash a weights file and look at every number in it, in one pass, with a buffer of 256 KiB.

    Raises:
        SourceUnreadable: the file cannot be read, or has changed since its header was.
    """
    with open_regular(path) as file:
        return scan_file(file, header)


def scan_file(file: BinaryIO, header: Header) -> Scan:
    """Scan an open file from its beginning, as ``scan_weights`` does by path."""
    hasher = Hasher()
    try:
        file.seek(0)
        magnitudes = scan_stream(file, header, hasher)
    except OSError as error:
        if isinstance(error, SourceUnreadable):
            raise
        raise SourceUnreadable(f"the weights file cannot be read: {error.strerror}") from error
    return Scan(hasher.digest, magnitudes)


def scan_stream(file: BinaryIO, header: Header, hasher: Hasher | None) -> dict[str, Magnitude]:
    """Return the magnitudes of all float tensors of a file, hashing it on the way if a hasher is given."""
    if os.fstat(file.fileno()).st_size != header.file_bytes:
        raise SourceUnreadable("the weights file has changed while it was read")
    buffer = memoryview(bytearray(CHUNK_BYTES))
    _read(file, buffer, header.data_start, hasher, None)
    magnitudes: dict[str, Magnitude] = {}
    for run in _runs(header.tensors):
        layout = _BY_NAME.get(run[0].dtype)
        if len(run) > 1 and layout is not None:
            size_bytes = run[-1].end - run[0].begin
            _read(file, buffer, size_bytes, hasher, None)
            magnitudes |= _see_small(buffer[:size_bytes], run, layout)
            continue
        for tensor in run:
            peak = _Peak(layout) if layout else None
            _read(file, buffer, tensor.size_bytes, hasher, peak.see if peak else None)
            if peak is not None:
                magnitudes[tensor.name] = peak.magnitude()
    return magnitudes


def _runs(tensors: tuple[TensorEntry, ...]) -> Iterator[list[TensorEntry]]:
    """Yield runs of neighbours of one dtype that fit the buffer together, none empty; or one tensor."""
    run: list[TensorEntry] = []
    for tensor in tensors:
        fits = run and run[0].dtype == tensor.dtype and tensor.end - run[0].begin <= CHUNK_BYTES
        if run and not (fits and tensor.size_bytes and run[-1].size_bytes):
            yield run
            run = []
        run.append(tensor)
    if run:
        yield run


def _see_small(data: memoryview, run: list[TensorEntry], layout: Format) -> dict[str, Magnitude]:
    """Return the magnitudes of many tensors at once; one by one they would cost a hundred times as much."""
    begins = np.array([(tensor.begin - run[0].begin) // layout.size_bytes for tensor in run])
    positive = np.maximum.reduceat(np.frombuffer(data, layout.signed), begins).tolist()
    negative = np.maximum.reduceat(np.frombuffer(data, layout.unsigned), begins).tolist()
    return {
        tensor.name: _magnitude(layout, most, least - layout.sign)
        for tensor, most, least in zip(run, positive, negative, strict=True)
    }


def read_tensor(file: BinaryIO, entry: TensorEntry) -> npt.NDArray[np.float64]:
    """Return one tensor of a float dtype as float64; bfloat16 and all others exactly."""
    file.seek(entry.begin)
    data = file.read(entry.size_bytes)
    if len(data) != entry.size_bytes:
        raise SourceUnreadable("the weights file has changed while it was read")
    return decode(data, Dtype(entry.dtype)).reshape(entry.shape)


def decode(data: bytes, dtype: Dtype) -> npt.NDArray[np.float64]:
    """Return little-endian numbers as float64, one dimension."""
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
        layout = self._layout
        self._positive = max(self._positive, int(np.frombuffer(chunk, layout.signed).max()))
        self._negative = max(self._negative, int(np.frombuffer(chunk, layout.unsigned).max()) - layout.sign)

    def magnitude(self) -> Magnitude:
        """Return the magnitude that the bits give."""
        return _magnitude(self._layout, self._positive, self._negative)


def _magnitude(layout: Format, positive: int, negative: int) -> Magnitude:
    bits = max(positive, negative, 0)
    if bits >= layout.infinity:
        return Magnitude(float("inf"), has_nan=bits > layout.infinity, is_finite=False)
    return Magnitude(layout.number(bits), has_nan=False, is_finite=True)


def _read(
    file: BinaryIO,
    buffer: memoryview,
    count: int,
    hasher: Hasher | None,
    see: Callable[[memoryview], None] | None,
) -> None:
    while count:
        chunk = buffer[: min(count, CHUNK_BYTES)]
        # A buffered file fills the chunk unless the end has come.
        if file.readinto(chunk) != len(chunk):  # type: ignore[attr-defined]  # not in typing's BinaryIO
            raise SourceUnreadable("the weights file has changed while it was read")
        if hasher is not None:
            hasher.update(chunk)
        if see is not None:
            see(chunk)
        count -= len(chunk)
