"""Writing a safetensors file tensor by tensor, so that memory holds one module and never the bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from ..files.digests import Hasher
from ..schemas.bundle import TensorSpec
from ..schemas.digest import Digest
from .factors import TORCH_DTYPES, bytes_of

_HEADER_ALIGNMENT = 8


class WeightsWriter:
    """Writes the header for ``specs`` first, then takes the tensors in that order.

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
            raise ValueError(f"`{missing.name}` stands in the header and was never written")

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
