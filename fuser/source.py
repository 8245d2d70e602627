"""A member's own files, as the witness of what a bundle should compute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from ..inspection.adapter import inspect_files
from ..schemas.bundle import BundleConfig
from ..schemas.errors import BundleRefused
from ..schemas.inventory import Inventory
from ..schemas.manifest import ManifestMember
from .arithmetic import MemberFactors
from .bundle import ModuleTensors
from .factors import TORCH_DTYPES, TensorFile
from .gates import normal_gate
from .member import modules_by_path

# A gate row is rounded to float32 once; a vector of unit length keeps about seven digits.
_GATE_TOLERANCE = 1e-5


def open_source_member(member: ManifestMember, config_path: Path, weights_path: Path) -> SourceMember:
    """A member's own files, after their digests were found to be those of the manifest.

    Raises:
        BundleRefused: these are other files.
        SourceUnreadable: they cannot be read.
    """
    inspection = inspect_files(config_path, weights_path)
    for what, found, expected in (
        ("config", inspection.config_sha256, member.config_sha256),
        ("weights", inspection.weights_sha256, member.weights_sha256),
    ):
        if found != expected:
            raise BundleRefused(
                f"the {what} of member `{member.name}` has digest `{found}`, the manifest says `{expected}`"
            )
    if inspection.inventory is None or inspection.header is None:
        raise BundleRefused(f"the own files of member `{member.name}` are no adapter that can be fused")
    return SourceMember(member, inspection.inventory, TensorFile(weights_path, inspection.header))


class SourceMember:
    """One member's own factors, read module by module by the bundle's module paths."""

    def __init__(self, member: ManifestMember, inventory: Inventory, file: TensorFile) -> None:
        self._modules = modules_by_path(inventory, member.renamed_modules)
        self._cast = member.cast
        self._file = file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)

    def read(self, path: str) -> MemberFactors | None:
        """The member's factors in a module, or None where it is absent.

        Where the bundle says that it cast this member, the factors are cast likewise: the loss was
        asked for and recorded, and what is judged here is the arithmetic.
        """
        module = self._modules.get(path)
        if module is None:
            return None
        A, B = self._file.read(module.a), self._file.read(module.b)
        if self._cast is not None:
            target = TORCH_DTYPES[self._cast.target]
            A, B = A.to(target), B.to(target)
        return MemberFactors(A, B, module.scaling)


def check_factors(
    config: BundleConfig, path: str, tensors: ModuleTensors, factors: Sequence[MemberFactors | None]
) -> list[str]:
    """Whether the bundle holds the members' very factors and scalings; problems in words.

    The outputs for some tokens could agree where the factors do not; equal numbers cannot differ.
    """
    layout, problems = config.layouts[path], []
    for index, (name, own) in enumerate(zip(config.names, factors, strict=True)):
        if own is None:
            continue
        rows, dtype = layout.rows_of(index), tensors.A.dtype
        same = torch.equal(tensors.A[rows], own.A.to(dtype)) and torch.equal(
            tensors.Bt[rows].T, own.B.to(dtype)
        )
        if not same or layout.scalings[index] != own.scaling:
            problems.append(f"`{path}`: the factors of `{name}` are not those of its own files")
    return problems


def check_initial_gate(
    config: BundleConfig, path: str, gate: Tensor, factors: Sequence[MemberFactors | None]
) -> list[str]:
    """Whether a gate that nobody fitted has the values its initialisation gives; problems in words."""
    initialisation = config.gate.initialisation
    if config.gate.is_fitted or initialisation is None or not config.has_gate(path):
        return []
    if initialisation.method == "normal":
        expected = normal_gate(path, len(config.members), gate.shape[1], seed=initialisation.seed)
        right = (gate == expected).all(dim=1).tolist()
    else:
        right = [_is_arrow(row.to(torch.float64), member) for row, member in zip(gate, factors, strict=True)]
    return [
        f"`{path}`: the gate row of `{name}` is not what `{initialisation.method}` gives"
        for name, is_right in zip(config.names, right, strict=True)
        if not is_right
    ]


def _is_arrow(row: Tensor, member: MemberFactors | None) -> bool:
    """Whether a row is a top right singular vector of B A.

    Judged by what it does and not by comparing vectors: where two singular values are nearly equal,
    another machine may rightly find another direction.
    """
    if member is None:
        return not bool(row.any())
    A, B = member.A.to(torch.float64), member.B.to(torch.float64)
    largest = torch.linalg.matrix_norm(torch.linalg.qr(B)[1] @ torch.linalg.qr(A.T)[1].T, ord=2).item()
    if largest == 0.0:
        return not bool(row.any())
    gain = torch.linalg.vector_norm(B @ (A @ row)).item()
    length = torch.linalg.vector_norm(row).item()
    return bool(abs(length - 1) <= _GATE_TOLERANCE and gain >= (1 - _GATE_TOLERANCE) * largest)
