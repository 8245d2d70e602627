"""The full checkpoint that the MeteoRA authors' evaluation loads: base and layers in one file.

A tensor of an adapted module is named as part of the layer around it. Tensors are copied one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..bundle import Bundle
from ..files.reading import read_start
from ..inspection.header import Header, read_header
from ..schemas.bundle import TENSOR_PREFIX, TensorSpec
from ..schemas.document import load_json
from ..schemas.errors import AdapterRefused, BundleRefused, SourceUnreadable
from ..schemas.inventory import Dtype
from .tensor_files import TensorFile, WeightsWriter

CHECKPOINT_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_MAX_INDEX_BYTES = 64 << 20
_EMBEDDING, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
_HINT = "name the folder with the base's safetensors weights"


class BaseWeights:
    """The weights of a base in a folder, in one safetensors file or in several with an index.

    Raises:
        SourceUnreadable: there are none that can be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._headers = {path: _header_of(path) for path in _files_of(folder)}
        self._places = {
            entry.name: path for path, header in self._headers.items() for entry in header.tensors
        }
        self.names = {name: name for name in self._places}
        # A base that ties its output layer to its embedding stores one of the two; a strict load wants both.
        if _EMBEDDING in self._places and _OUTPUT not in self._places:
            self.names[_OUTPUT] = _EMBEDDING

    def spec(self, name: str) -> tuple[Dtype, tuple[int, ...]]:
        """Return the element type and the shape of a tensor.

        Raises:
            SourceUnreadable: it is not of a type that floats have.
        """
        stored = self.names[name]
        entry = self._headers[self._places[stored]][stored]
        try:
            return Dtype(entry.dtype), entry.shape
        except ValueError:
            raise SourceUnreadable(
                f"`{name}` of the base is stored as {entry.dtype}, expected floats: quantised weights "
                "have no place in their layout",
                hint=_HINT,
            ) from None

    def open(self, stack: ExitStack) -> Mapping[str, TensorFile]:
        """Return the open file of each tensor; the files close with ``stack``."""
        files = {
            path: stack.enter_context(TensorFile(path, header)) for path, header in self._headers.items()
        }
        return {name: files[self._places[stored]] for name, stored in self.names.items()}


def write_checkpoint(bundle: Bundle, base: BaseWeights, moe_file: Path, target: Path) -> None:
    """Write the base's tensors and those of a finished ``moe_file`` into one file.

    Raises:
        BundleRefused: the base lacks a module of the bundle.
        SourceUnreadable: a file cannot be read.
    """
    modules = set(bundle.config.layouts)
    lacking = [path for path in bundle.config.layouts if f"{path}.weight" not in base.names]
    if lacking:
        raise BundleRefused(
            f"`{base.folder}` has no weights of `{lacking[0]}`", hint="name the base that the bundle is for"
        )
    header = read_header(moe_file)
    named = {name: _layer_name(name, modules) for name in sorted(base.names)}
    specs = [TensorSpec(named[name], *base.spec(name)) for name in named]
    specs += [TensorSpec(entry.name, Dtype(entry.dtype), entry.shape) for entry in header.tensors]
    with ExitStack() as stack:
        files = base.open(stack)
        own = stack.enter_context(TensorFile(moe_file, header))
        writer = stack.enter_context(WeightsWriter(target, specs, metadata={"format": "pt"}))
        for name, written in named.items():
            writer.write(written, files[name].read(base.names[name]))
        for entry in header.tensors:
            writer.write(entry.name, own.read(entry.name))


def _layer_name(name: str, modules: set[str]) -> str:
    module, _, parameter = name.rpartition(".")
    inside = f"{module}.base_layer.{parameter}" if module in modules else name
    return f"{TENSOR_PREFIX}{inside}"


def _files_of(folder: Path) -> list[Path]:
    if not (folder / _INDEX_FILE).exists():
        return [folder / CHECKPOINT_FILE]
    data = read_start(folder / _INDEX_FILE, _MAX_INDEX_BYTES, follows_links=True)
    index: Any = load_json(data, what=_INDEX_FILE, max_bytes=_MAX_INDEX_BYTES)
    named = index.get("weight_map") if isinstance(index, dict) else None
    files = set(named.values()) if isinstance(named, dict) else set()
    if not files or not all(isinstance(each, str) and Path(each).name == each for each in files):
        raise SourceUnreadable(f"`{folder / _INDEX_FILE}` names no files of the folder", hint=_HINT)
    return [folder / each for each in sorted(files)]


def _header_of(path: Path) -> Header:
    try:
        return read_header(path)
    except AdapterRefused as error:
        raise SourceUnreadable(f"`{path}` is not a safetensors file", hint=_HINT) from error
