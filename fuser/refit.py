"""A bundle with other gates: a new folder of the same members, their factors bit for bit.

Only the gate is new, in the weights and in the config, and with it the card and the manifest.
Provenance, each member's own config and header, and ``experts/`` are taken over as they are. Memory is
bounded by one module. The bytes are a function of the bundle and the new gates alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..bundle import Bundle
from ..bundle.files import check_files
from ..files.progress import Progress, Step, silent
from ..schemas import bundle as names
from ..schemas.bundle import BundleConfig, Gate
from ..schemas.errors import BundleRefused
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
    if problems := check_files(bundle.folder, manifest):
        raise BundleRefused(
            f"the bundle in `{bundle.folder}` is damaged: {problems[0]}",
            hint="run `meteora-registry verify` on it",
        )
    config = refitted_config(bundle.config, new)
    _check_values(config, new)
    files = {names.WEIGHTS_FILE: _write_weights(bundle, config, new, folder, progress)}
    (folder / names.CONFIG_FILE).write_bytes(config.to_bytes())
    experts = _copy_experts(bundle, manifest, folder)
    files |= experts
    storage = _storage(bundle, config)
    write_card(folder / names.CARD_FILE, config, storage, manifest.members, with_experts=bool(experts))
    return write_manifest(folder, files, manifest.members)


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


def _check_values(config: BundleConfig, new: NewGates) -> None:
    wanted = {path for path in config.target_modules if config.has_gate(path)}
    if missing := sorted(wanted - new.values.keys()):
        raise BundleRefused(f"there are no new values for the gate of `{missing[0]}`")
    asked = {path for path in config.module_paths if config.request_classes(path)}
    if missing := sorted(asked - new.request.keys()):
        raise BundleRefused(f"there are no new values for the request gate of `{missing[0]}`")


def _write_weights(
    bundle: Bundle, config: BundleConfig, new: NewGates, folder: Path, progress: Progress
) -> FileRecord:
    step = Step("writing", len(config.module_paths), progress)
    with ExitStack() as stack:
        old = stack.enter_context(BundleTensors(bundle))
        specs = config.all_tensors(bundle.shapes, bundle.dtype)
        writer = WeightsWriter(folder / names.WEIGHTS_FILE, specs, metadata=WEIGHTS_METADATA)
        stack.enter_context(writer)
        for path, layout in config.layouts.items():
            for tensor in (names.TENSOR_A, names.TENSOR_B):
                writer.write(
                    names.tensor_name(path, tensor), old.read_factor(path, tensor, slice(0, layout.rows))
                )
            if config.has_gate(path):
                rows, bias = new.values[path]
                writer.write(names.tensor_name(path, names.TENSOR_GATE), rows)
                if config.gate.bias:
                    writer.write(names.tensor_name(path, names.TENSOR_GATE_BIAS), bias)
            if config.request_classes(path):
                _write_request_gate(writer, path, new)
            step.advance()
        for path in config.observed:
            _write_request_gate(writer, path, new)
            step.advance()
    return FileRecord(sha256=writer.sha256, size_bytes=writer.size_bytes)


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


def _storage(bundle: Bundle, config: BundleConfig) -> Storage:
    padding = sum(
        (layout.rows - sum(layout.ranks)) * sum(bundle.shapes[path])
        for path, layout in config.layouts.items()
    )
    return Storage(
        dtype=bundle.dtype,
        size_bytes=sum(spec.size_bytes for spec in config.all_tensors(bundle.shapes, bundle.dtype)),
        padding_bytes=padding * bundle.dtype.size_bytes,
    )
