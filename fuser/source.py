"""A member's own files, as evidence of what a bundle should compute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from ..bundle.member import QuotedMember
from ..files.reading import read_bounded
from ..inspection.config_file import MAX_CONFIG_BYTES
from ..schemas.bundle import BundleConfig
from ..schemas.digest import Digest
from ..schemas.errors import BundleRefused
from .arithmetic import MemberFactors
from .bundle_reader import ModuleTensors
from .gates import INITIALISATIONS
from .tensor_files import TORCH_DTYPES, TensorFile, relative_loss


def open_source_member(member: QuotedMember, config_path: Path, weights_path: Path) -> SourceMember:
    """Open a member's own files, after their digests were found to be those of the manifest.

    The caller has checked that the manifest's quotation of the member can be read.

    Raises:
        BundleRefused: these are other files.
        SourceUnreadable: they cannot be read.
    """
    config_sha256 = Digest.of_bytes(read_bounded(config_path, MAX_CONFIG_BYTES))
    _require_digest(member, "config", config_sha256, member.entry.config_sha256)
    with ExitStack() as opened:
        file = opened.enter_context(TensorFile(weights_path, member.header))
        _require_digest(member, "weights", file.sha256(), member.entry.weights_sha256)
        opened.pop_all()
    return SourceMember(member, file)


def _require_digest(member: QuotedMember, what: str, found: Digest, expected: Digest) -> None:
    if found != expected:
        raise BundleRefused(
            f"the {what} of member `{member.name}` has digest `{found}`, the manifest has `{expected}`"
        )


class SourceMember:
    """One member's own factors, read module by module by the bundle's module paths.

    Its modules and their ranks follow from the manifest's quotation, which ``check_members`` compares with
    the bundle and ``check_quotation`` with the file; only then are the factors read.
    """

    def __init__(self, member: QuotedMember, file: TensorFile) -> None:
        self._member = member
        self._file = file
        self._cast_error = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)

    def check_quotation(self) -> list[str]:
        """Check that the manifest quotes the header of the member's own file; return the problem found.

        A quotation could leave a module out, and the bundle with it, and both would agree.
        """
        start, size_bytes = self._member.start, self._member.entry.weights_bytes
        if self._file.size_bytes == size_bytes and self._file.read_start(len(start)) == start:
            return []
        return [
            f"the manifest does not quote the header of the own weights of member `{self._member.name}` "
            "as it is: the bundle may lack what it leaves out"
        ]

    def read(self, path: str) -> MemberFactors | None:
        """Return the member's factors in a module, or None where it is absent.

        If the bundle records a cast of this member, the factors are cast likewise: the loss was
        asked for and recorded, and what is judged here is the arithmetic.
        """
        module = self._member.modules.get(path)
        if module is None:
            return None
        A, B = self._file.read(module.a), self._file.read(module.b)
        cast = self._member.entry.cast
        if cast is not None:
            A, B = (self._round(tensor, TORCH_DTYPES[cast.target]) for tensor in (A, B))
        return MemberFactors(A, B, module.scaling)

    def _round(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        result = tensor.to(dtype)
        self._cast_error = max(self._cast_error, relative_loss(tensor, result))
        return result

    def check_cast_error(self) -> list[str]:
        """Check the error of the cast that the manifest states, after all modules were read."""
        cast = self._member.entry.cast
        if cast is None or math.isclose(cast.max_relative_error, self._cast_error, rel_tol=1e-6):
            return []
        return [
            f"the manifest states that the cast of `{self._member.name}` lost up to "
            f"{cast.max_relative_error:.3g}, its own files make it {self._cast_error:.3g}"
        ]


def check_factors(
    config: BundleConfig, path: str, tensors: ModuleTensors, factors: Sequence[MemberFactors | None]
) -> list[str]:
    """Check that the bundle holds the members' very factors; return the problems found.

    The outputs for some tokens could agree where the factors do not; equal numbers cannot differ. Ranks,
    scalings and shapes are those of the members' files because the quoted headers are.
    """
    layout, problems = config.layouts[path], []
    for index, (name, own) in enumerate(zip(config.names, factors, strict=True)):
        if own is None:
            continue
        rows, dtype = layout.rows_of(index), tensors.A.dtype
        is_same = torch.equal(tensors.A[rows], own.A.to(dtype)) and torch.equal(
            tensors.Bt[rows].T, own.B.to(dtype)
        )
        if not is_same:
            problems.append(f"`{path}`: the factors of `{name}` are not those of its own files")
    return problems


def check_initial_gate(
    config: BundleConfig, path: str, gate: Tensor, factors: Sequence[MemberFactors | None]
) -> list[str]:
    """Check that a gate that was not fitted has the values its initialisation gives; return the problems."""
    initialisation = config.gate.initialisation
    if config.gate.is_fitted or initialisation is None or not config.has_gate(path):
        return []
    pairs = [None if member is None else (member.A, member.B) for member in factors]
    right = INITIALISATIONS[initialisation.method].check(path, gate, pairs, initialisation.seed)
    return [
        f"`{path}`: the gate row of `{name}` is not what `{initialisation.method}` gives"
        for name, is_right in zip(config.names, right, strict=True)
        if not is_right
    ]
