"""Opening a bundle: a reader refuses whatever it does not know, and any tensor that is not as promised.

Only the config and the header are read; ``BundleTensors`` then reads one module at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from ..inspection.header import Header, TensorEntry, read_header
from ..inspection.regular_file import read_bounded as read_bounded
from ..schemas import bundle as names
from ..schemas.bundle import BundleConfig
from ..schemas.errors import BundleRefused, SourceUnreadable
from ..schemas.inventory import Dtype
from ..schemas.manifest import MAX_MANIFEST_BYTES, Manifest
from .factors import TensorFile

MAX_BUNDLE_CONFIG_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose config and tensor names, shapes and element types were checked."""

    folder: Path
    config: BundleConfig
    header: Header
    dtype: Dtype

    @property
    def gate_is_fitted(self) -> bool:
        """Whether somebody fitted the gate; if not, whoever shows the bundle says so."""
        return self.config.gate.is_fitted


@dataclass(frozen=True, slots=True)
class ModuleTensors:
    """One module: A ``[rows, in]``, Bt ``[rows, out]``, gate float32 ``[L, in]``, bias float32 ``[L]``.

    Where a module takes another's routing, the gate is that one's, and ``in`` its input features.
    """

    A: Tensor
    Bt: Tensor
    gate: Tensor
    bias: Tensor | None


def open_bundle(folder: Path) -> Bundle:
    """Open a bundle for reading.

    Raises:
        BundleRefused: it is no bundle of a known format, or its tensors are not those of its config.
        InvalidDocument: its config breaks the schema.
        SourceUnreadable: a file is missing or cannot be read.
    """
    config_bytes = read_bounded(folder / names.CONFIG_FILE, MAX_BUNDLE_CONFIG_BYTES)
    config = BundleConfig.read(config_bytes, what=names.CONFIG_FILE, max_bytes=MAX_BUNDLE_CONFIG_BYTES)
    weights = folder / names.WEIGHTS_FILE
    if not weights.is_file():
        raise SourceUnreadable(f"`{weights}` is missing: the bundle has no weights")
    header = read_header(weights)
    return Bundle(folder, config, header, _check_tensors(config, header))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle.

    Raises:
        SourceUnreadable: it is missing or cannot be read.
        InvalidDocument: it breaks its schema.
    """
    data = read_bounded(folder / names.MANIFEST_FILE, MAX_MANIFEST_BYTES)
    return Manifest.read(data)


def module_shapes(bundle: Bundle) -> dict[str, tuple[int, int]]:
    """``(in, out)`` of every module, from the header."""
    shapes = {entry.name: entry.shape for entry in bundle.header.tensors}
    return {
        path: (
            shapes[names.tensor_name(path, names.TENSOR_A)][1],
            shapes[names.tensor_name(path, names.TENSOR_B)][1],
        )
        for path in bundle.config.target_modules
    }


class BundleTensors:
    """The open weights of a bundle, read module by module."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._file = TensorFile(bundle.folder / names.WEIGHTS_FILE, bundle.header)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)

    def read(self, path: str) -> ModuleTensors:
        """The tensors of one module."""
        gate = self._bundle.config.gate
        source = gate.sources.get(path, path)
        return ModuleTensors(
            A=self._file.read(names.tensor_name(path, names.TENSOR_A)),
            Bt=self._file.read(names.tensor_name(path, names.TENSOR_B)),
            gate=self._file.read(names.tensor_name(source, names.TENSOR_GATE)),
            bias=self._file.read(names.tensor_name(source, names.TENSOR_GATE_BIAS)) if gate.bias else None,
        )

    def read_factor(self, path: str, tensor: str, rows: slice) -> Tensor:
        """Some rows of a module's ``meteora_A`` or ``meteora_B``; nothing else is read."""
        return self._file.read_rows(names.tensor_name(path, tensor), rows)


def _check_tensors(config: BundleConfig, header: Header) -> Dtype:
    entries = {entry.name: entry for entry in header.tensors}
    _refuse_strangers(names.expected_tensors(config), set(entries))
    if header.metadata.get("meteora_format") != str(names.BUNDLE_FORMAT):
        raise BundleRefused(
            f"`{names.WEIGHTS_FILE}` says meteora_format `{header.metadata.get('meteora_format')}` in its "
            f"metadata, expected `{names.BUNDLE_FORMAT}`"
        )
    dtypes = {_check_module(config, path, entries) for path in config.target_modules}
    if len(dtypes) > 1:
        raise BundleRefused(f"the factors have different element types: {', '.join(sorted(dtypes))}")
    return dtypes.pop()


def _refuse_strangers(expected: set[str], found: set[str]) -> None:
    if missing := sorted(expected - found):
        raise BundleRefused(
            f"the bundle lacks {len(missing)} of {len(expected)} tensors, the first `{missing[0]}`"
        )
    if unexpected := sorted(found - expected):
        raise BundleRefused(
            f"the bundle has {len(unexpected)} tensors that its config does not name, "
            f"the first `{unexpected[0]}`"
        )


def _check_module(config: BundleConfig, path: str, entries: dict[str, TensorEntry]) -> Dtype:
    layout = config.layouts[path]
    A, Bt = (entries[names.tensor_name(path, tensor)] for tensor in (names.TENSOR_A, names.TENSOR_B))
    if len(A.shape) != 2 or A.shape[0] != layout.rows:
        raise _misshaped(A, f"({layout.rows}, in)")
    if len(Bt.shape) != 2 or Bt.shape[0] != layout.rows:
        raise _misshaped(Bt, f"({layout.rows}, out)")
    if config.has_gate(path):
        _check_gate(config, path, entries, A.shape[1])
    if A.dtype != Bt.dtype or A.dtype not in (Dtype.F32, Dtype.F16, Dtype.BF16):
        raise BundleRefused(
            f"`{path}` has factors of {A.dtype} and {Bt.dtype}, expected one of F32, F16, BF16"
        )
    return Dtype(A.dtype)


def _check_gate(config: BundleConfig, path: str, entries: dict[str, TensorEntry], in_features: int) -> None:
    members = len(config.members)
    gate = entries[names.tensor_name(path, names.TENSOR_GATE)]
    if gate.shape != (members, in_features) or gate.dtype != Dtype.F32:
        raise _misshaped(gate, f"({members}, {in_features}) of F32")
    if config.gate.bias:
        bias = entries[names.tensor_name(path, names.TENSOR_GATE_BIAS)]
        if bias.shape != (members,) or bias.dtype != Dtype.F32:
            raise _misshaped(bias, f"({members},) of F32")


def _misshaped(entry: TensorEntry, expected: str) -> BundleRefused:
    return BundleRefused(f"`{entry.name}` is {entry.shape} of {entry.dtype}, expected {expected}")
