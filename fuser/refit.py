"""A bundle with other gates: a new folder of the same members, their factors bit for bit.

Only the gate is new, in the weights and in the config, and with it the card and the manifest.
Provenance, each member's own config and header, and ``experts/`` are taken over as they are. Memory is
bounded by one module. The bytes are a function of the bundle and the new gates alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import Tensor

from ..bundle import Bundle
from ..bundle.files import check_files
from ..files.progress import Progress, Step, silent
from ..schemas import bundle as names
from ..schemas.bundle import BundleConfig, Gate
from ..schemas.errors import BundleRefused
from ..schemas.inventory import Dtype
from ..schemas.manifest import FileRecord, Manifest
from ..schemas.names import below
from .bundle_card import Storage, write_card
from .bundle_reader import BundleTensors
from .bundle_writer import WEIGHTS_METADATA, write_manifest
from .tensor_files import WeightsWriter


@dataclass(frozen=True, slots=True)
class NewGates:
    """New gates for a bundle: the config's part and the tensors.

    Attributes:
        gate: with ``fitted`` saying on what.
        top_k: members per token.
        temperature: of the softmax over them.
        values: float32 rows ``[L, in]`` and bias ``[L]``, the latter read only if the gate has one, of every
            module that has a gate of its own.
        request: the tensors of every module that has a request gate, in the order of ``REQUEST_TENSORS``.
    """

    gate: Gate
    top_k: int
    temperature: float
    values: Mapping[str, tuple[Tensor, Tensor]]
    request: Mapping[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)


def refit_bundle(bundle: Bundle, new: NewGates, folder: Path, *, progress: Progress = silent) -> Manifest:
    """Write the bundle with other gates into an empty folder, everything but the verification.

    Args:
        bundle: the old one; it is read and not changed.
        new: the gates.
        folder: an empty folder.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        BundleRefused: a file of the old bundle differs from its manifest, or a module gets no gate.
        InvalidDocument: the new config breaks its schema.
        SourceUnreadable: a file cannot be read.
    """
    manifest = bundle.manifest
    require_undamaged(bundle)
    config = refitted_config(bundle.config, new)
    check_values(config, new)
    with BundleTensors(bundle) as old:
        files = {
            names.WEIGHTS_FILE: write_weights(
                folder / names.WEIGHTS_FILE,
                config,
                bundle.shapes,
                bundle.dtype,
                partial(_read_flat, old, config),
                new,
                progress,
            )
        }
    (folder / names.CONFIG_FILE).write_bytes(config.to_bytes())
    experts = _copy_experts(bundle, manifest, folder)
    files |= experts
    storage = storage_of(config, bundle.shapes, bundle.dtype)
    write_card(folder / names.CARD_FILE, config, storage, manifest.members, with_experts=bool(experts))
    return write_manifest(folder, files, manifest.members)


def require_undamaged(bundle: Bundle) -> None:
    """Check that every file of a bundle is the one that its manifest lists.

    Raises:
        BundleRefused: one is not.
    """
    if problems := check_files(bundle.folder, bundle.manifest):
        raise BundleRefused(
            f"the bundle in `{bundle.folder}` is damaged: {problems[0]}",
            hint="run `meteora-registry verify` on it",
        )


def refitted_config(config: BundleConfig, new: NewGates) -> BundleConfig:
    """Return the config of the bundle with other gates.

    Raises:
        InvalidDocument: they do not go with the members.
    """
    changes = {
        "gate": new.gate.model_dump(mode="json"),
        "required_features": new.gate.features,
        "top_k": new.top_k,
        "temperature": new.temperature,
    }
    return BundleConfig.from_value(config.model_dump(mode="json") | changes, what="the new config")


def check_values(config: BundleConfig, new: NewGates) -> None:
    """Check that every gate of a bundle gets values.

    Raises:
        BundleRefused: one gets none.
    """
    wanted = {path for path in config.target_modules if config.has_gate(path)}
    if missing := sorted(wanted - new.values.keys()):
        raise BundleRefused(f"there are no new values for the gate of `{missing[0]}`")
    asked = {path for path in config.module_paths if config.request_classes(path)}
    if missing := sorted(asked - new.request.keys()):
        raise BundleRefused(f"there are no new values for the request gate of `{missing[0]}`")


def write_weights(
    path: Path,
    config: BundleConfig,
    shapes: Mapping[str, tuple[int, int]],
    dtype: Dtype,
    factors: Callable[[str], tuple[Tensor, Tensor]],
    new: NewGates,
    progress: Progress,
) -> FileRecord:
    """Write the weights of a bundle, one module at a time.

    Args:
        path: the new file.
        config: of the bundle.
        shapes: ``(in_features, out_features)`` of every target module.
        dtype: of the factors.
        factors: returns a module's flat factors, A ``[rows, in]`` and B transposed ``[rows, out]``.
        new: the gates.
        progress: called with a step's name, how much of it is done, and how much there is.
    """
    step = Step("writing", len(config.module_paths), progress)
    specs = config.all_tensors(shapes, dtype)
    with WeightsWriter(path, specs, metadata=WEIGHTS_METADATA) as writer:
        for module in config.target_modules:
            for tensor, flat in zip(names.FACTORS, factors(module), strict=True):
                writer.write(names.tensor_name(module, tensor), flat)
            if config.has_gate(module):
                rows, bias = new.values[module]
                writer.write(names.tensor_name(module, names.TENSOR_GATE), rows)
                if config.gate.bias:
                    writer.write(names.tensor_name(module, names.TENSOR_GATE_BIAS), bias)
            if config.request_classes(module):
                _write_request_gate(writer, module, new)
            step.advance()
        for module in config.observed:
            _write_request_gate(writer, module, new)
            step.advance()
    return FileRecord(sha256=writer.sha256, size_bytes=writer.size_bytes)


def _read_flat(tensors: BundleTensors, config: BundleConfig, path: str) -> tuple[Tensor, Tensor]:
    rows = slice(0, config.layouts[path].rows)
    A, Bt = (tensors.read_factor(path, tensor, rows) for tensor in names.FACTORS)
    return A, Bt


def _write_request_gate(writer: WeightsWriter, path: str, new: NewGates) -> None:
    for tensor, value in zip(names.REQUEST_TENSORS, new.request[path], strict=True):
        writer.write(names.tensor_name(path, tensor), value)


def _copy_experts(bundle: Bundle, manifest: Manifest, folder: Path) -> dict[str, FileRecord]:
    experts = {
        name: record for name, record in manifest.files.items() if name.startswith(f"{names.EXPERTS_FOLDER}/")
    }
    for name in experts:
        target = below(folder, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(below(bundle.folder, name), target)
    return experts


def storage_of(config: BundleConfig, shapes: Mapping[str, tuple[int, int]], dtype: Dtype) -> Storage:
    """Return the size of the tensors of a bundle whose modules have these ``(in, out)`` features."""
    padding = sum(
        (layout.rows - sum(layout.ranks)) * sum(shapes[path]) for path, layout in config.layouts.items()
    )
    return Storage(
        dtype=dtype,
        size_bytes=sum(spec.size_bytes for spec in config.all_tensors(shapes, dtype)),
        padding_bytes=padding * dtype.size_bytes,
    )
