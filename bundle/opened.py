"""A bundle on disk as one value: every part is read at most once, checked, and kept.

A reader refuses whatever it does not know, and any tensor that is not as the config promises. The tensors
themselves are read by the fuser's ``BundleTensors``, one module at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Self

from ..files.reading import read_bounded
from ..inspection.header import Header, TensorEntry, read_header
from ..schemas.bundle import (
    BUNDLE_FORMAT,
    CONFIG_FILE,
    MANIFEST_FILE,
    MAX_BUNDLE_CONFIG_BYTES,
    TENSOR_A,
    TENSOR_B,
    VERIFICATION_FILE,
    WEIGHTS_FILE,
    BundleConfig,
    TensorSpec,
    tensor_name,
)
from ..schemas.digest import Digest
from ..schemas.document import load_json
from ..schemas.errors import BundleRefused, SourceUnreadable
from ..schemas.facts import BundleFacts
from ..schemas.inventory import Dtype
from ..schemas.manifest import MAX_MANIFEST_BYTES, Manifest
from ..schemas.verification import VerificationRecord
from .member import QuotedMember
from .saved import refuse_saved_model

MAX_RECORD_BYTES = 64 << 20


class Bundle:
    """A bundle's folder with its config, header, manifest and record.

    ``Bundle.open`` checks config and header, which every use needs. The manifest, the record and the members
    are read when they are asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Self:
        """Open a bundle for reading.

        Raises:
            BundleRefused: it is not a bundle of a known format, its tensors are not those of its config, or
                it is a model that PEFT saved.
            InvalidDocument: its config breaks the schema.
            SourceUnreadable: a file is missing or cannot be read.
        """
        refuse_saved_model(Path(folder))
        bundle = cls(Path(folder))
        bundle.dtype  # noqa: B018  # checks config and header
        return bundle

    @cached_property
    def config(self) -> BundleConfig:
        """The config, format 1."""
        data = read_bounded(self.folder / CONFIG_FILE, MAX_BUNDLE_CONFIG_BYTES)
        return BundleConfig.read(data, what=CONFIG_FILE, max_bytes=MAX_BUNDLE_CONFIG_BYTES)

    @cached_property
    def header(self) -> Header:
        """The header of the weights."""
        weights = self.folder / WEIGHTS_FILE
        if not weights.is_file():
            raise SourceUnreadable(f"`{weights}` is missing: the bundle has no weights")
        return read_header(weights)

    @cached_property
    def dtype(self) -> Dtype:
        """The element type of the factors, after every tensor was found to be as the config promises."""
        return _check_tensors(self.config, self.header, self._entries)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """``(in_features, out_features)`` of every module, by path in the config's order."""
        return {
            path: (
                self._entries[tensor_name(path, TENSOR_A)].shape[1],
                self._entries[tensor_name(path, TENSOR_B)].shape[1],
            )
            for path in self.config.target_modules
        }

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Every tensor that the bundle has, in the order in which the fuser writes them."""
        return self.config.all_tensors(self.shapes, self.dtype)

    @property
    def facts(self) -> BundleFacts:
        """What a catalog keeps of the bundle.

        Raises:
            BundleRefused, InvalidDocument, SourceUnreadable: the bundle or its manifest cannot be read.
        """
        config, fitted = self.config, self.config.gate.fitted
        return BundleFacts(
            manifest_sha256=self.manifest_sha256,
            size_bytes=sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file()),
            base=config.base_model_name_or_path,
            base_revision=config.revision,
            dtype=str(self.dtype),
            top_k=config.top_k,
            temperature=config.temperature,
            gate_kind=config.gate.kind,
            gate_scope=config.gate.scope,
            gate_fitted=fitted if isinstance(fitted, str) else fitted.summary,
        )

    @property
    def is_fitted(self) -> bool:
        """Whether the gates were fitted; if not, every output that shows the bundle states it."""
        return self.config.gate.is_fitted

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest.

        Raises:
            SourceUnreadable: it is missing or cannot be read.
            InvalidDocument: it breaks its schema.
        """
        return Manifest.read(self._manifest_bytes)

    @cached_property
    def manifest_sha256(self) -> Digest:
        """The digest of the manifest's bytes, by which a record and a catalog know the bundle."""
        return Digest.of_bytes(self._manifest_bytes)

    @cached_property
    def record(self) -> VerificationRecord | None:
        """The verification record in the folder, None without one.

        Raises:
            InvalidDocument: it was changed after it was written.
        """
        path = self.folder / VERIFICATION_FILE
        if not path.is_file():
            return None
        data = read_bounded(path, MAX_RECORD_BYTES)
        value = load_json(data, what=VERIFICATION_FILE, max_bytes=MAX_RECORD_BYTES)
        return VerificationRecord.unseal(value, data, what=VERIFICATION_FILE)

    @cached_property
    def members(self) -> tuple[QuotedMember, ...]:
        """The members as the manifest quotes them, in its order."""
        return tuple(QuotedMember(entry) for entry in self.manifest.members)

    @cached_property
    def _manifest_bytes(self) -> bytes:
        return read_bounded(self.folder / MANIFEST_FILE, MAX_MANIFEST_BYTES)

    @cached_property
    def _entries(self) -> dict[str, TensorEntry]:
        return {entry.name: entry for entry in self.header.tensors}


def _check_tensors(config: BundleConfig, header: Header, entries: dict[str, TensorEntry]) -> Dtype:
    _refuse_strangers(config.tensor_names, set(entries))
    if header.metadata.get("meteora_format") != str(BUNDLE_FORMAT):
        raise BundleRefused(
            f"`{WEIGHTS_FILE}` has meteora_format `{header.metadata.get('meteora_format')}` in its "
            f"metadata, expected `{BUNDLE_FORMAT}`"
        )
    dtypes = {_check_module(config, path, entries) for path in config.target_modules}
    if len(dtypes) > 1:
        raise BundleRefused(f"the factors have different element types: {', '.join(sorted(dtypes))}")
    dtype = dtypes.pop()
    for path, features in config.observed.items():
        _check_specs(config.tensors_of(path, features, 0, dtype), entries)
    return dtype


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
    A, Bt = (entries[tensor_name(path, tensor)] for tensor in (TENSOR_A, TENSOR_B))
    rows = config.layouts[path].rows
    for entry, columns in ((A, "in"), (Bt, "out")):
        if len(entry.shape) != 2 or entry.shape[0] != rows:
            raise BundleRefused(
                f"`{entry.name}` is {entry.shape} of {entry.dtype}, expected ({rows}, {columns})"
            )
    if A.dtype != Bt.dtype or A.dtype not in (Dtype.F32, Dtype.F16, Dtype.BF16):
        raise BundleRefused(
            f"`{path}` has factors of {A.dtype} and {Bt.dtype}, expected one of F32, F16, BF16"
        )
    _check_specs(config.tensors_of(path, A.shape[1], Bt.shape[1], Dtype(A.dtype)), entries)
    return Dtype(A.dtype)


def _check_specs(specs: Iterable[TensorSpec], entries: dict[str, TensorEntry]) -> None:
    for spec in specs:
        entry = entries[spec.name]
        if (entry.shape, entry.dtype) != (spec.shape, spec.dtype):
            raise BundleRefused(
                f"`{entry.name}` is {entry.shape} of {entry.dtype}, expected {spec.shape} of {spec.dtype}"
            )
