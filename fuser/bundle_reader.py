"""A bundle's tensors, read one module at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from torch import Tensor

from ..bundle import Bundle
from ..schemas import bundle as names
from ..schemas.bundle import ModuleLayout
from .tensor_files import TensorFile


@dataclass(frozen=True, slots=True)
class ModuleTensors:
    """One module: A ``[rows, in]``, Bt ``[rows, out]``, gate float32 ``[L, in]``, bias float32 ``[L]``.

    Where a module takes another's routing, the gate is that one's, and ``in`` its input features.
    ``request`` has the tensors of its request gate, by name, if it has one.
    """

    A: Tensor
    Bt: Tensor
    gate: Tensor
    bias: Tensor | None
    request: Mapping[str, Tensor] = field(default_factory=dict)


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
        """Read the tensors of one module."""
        gate = self._bundle.config.gate
        source = gate.sources.get(path, path)
        return ModuleTensors(
            A=self._file.read(names.tensor_name(path, names.TENSOR_A)),
            Bt=self._file.read(names.tensor_name(path, names.TENSOR_B)),
            gate=self._file.read(names.tensor_name(source, names.TENSOR_GATE)),
            bias=self._file.read(names.tensor_name(source, names.TENSOR_GATE_BIAS)) if gate.bias else None,
            request=self.read_request(path),
        )

    def read_request(self, path: str) -> dict[str, Tensor]:
        """Read the tensors of a module's request gate, by name; none if it has none."""
        has_request = self._bundle.config.request_classes(path) > 0
        return {
            tensor: self._file.read(names.tensor_name(path, tensor))
            for tensor in (names.REQUEST_TENSORS if has_request else ())
        }

    def read_factor(self, path: str, tensor: str, rows: slice) -> Tensor:
        """Read some rows of a module's ``meteora_A`` or ``meteora_B``, and nothing else."""
        return self._file.read_rows(names.tensor_name(path, tensor), rows)


def check_tensors(layout: ModuleLayout, tensors: ModuleTensors, member_names: tuple[str, ...]) -> list[str]:
    """Check that every value is finite and every padding row is zero; return the problems found."""
    named = {"A": tensors.A, "B": tensors.Bt, "gate": tensors.gate, "gate bias": tensors.bias}
    problems = check_finite(layout.path, {**named, **tensors.request})
    for index, member in enumerate(member_names):
        padding = layout.padding_of(index)
        if bool(tensors.A[padding].any()) or bool(tensors.Bt[padding].any()):
            problems.append(f"`{layout.path}`: the padding of `{member}` is not zero")
    return problems


def check_finite(path: str, named: Mapping[str, Tensor | None]) -> list[str]:
    """Check that every value of a module's tensors is finite; return the problems found."""
    return [
        f"`{path}`: {name} has values that are not finite"
        for name, tensor in named.items()
        if tensor is not None and not math.isfinite(tensor.abs().max().item())
    ]
