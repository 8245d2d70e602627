"""The LoRA pairs of an adapter as its tensors show them; a config adds only alpha and patterns."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from functools import cached_property

from .digest import Digest
from .document import Count, Document, PositiveCount


class Dtype(StrEnum):
    """The element types of LoRA factors, by their safetensors names."""

    F64 = "F64"
    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"

    @property
    def size_bytes(self) -> int:
        """Bytes of one element."""
        return {"F64": 8, "F32": 4}.get(self.value, 2)


# The other element types whose values each type of a bundle's factors holds exactly.
_HELD: dict[Dtype, frozenset[Dtype]] = {Dtype.F32: frozenset({Dtype.F16, Dtype.BF16})}


def lossy_dtypes(found: Iterable[Dtype], target: Dtype) -> tuple[Dtype, ...]:
    """Return those of the element types whose values the target cannot hold exactly, in their order."""
    held = _HELD.get(target, frozenset())
    return tuple(dtype for dtype in found if dtype is not target and dtype not in held)


class ModuleFactors(Document):
    """The LoRA pair of one linear module, as the header and the config describe it.

    ``a`` is the tensor name of A ``[rank, in_features]``, ``b`` that of B ``[out_features, rank]``;
    ``scaling`` is alpha / rank, or alpha / sqrt(rank) with rsLoRA, of the adapter's own rank. The weights of
    ``experts`` stacked into one parameter have a pair each, all in the same two tensors: A is then
    ``[experts * rank, in_features]`` expert by expert, and B ``[out_features, rank * experts]`` rank by rank.
    """

    path: str
    rank: PositiveCount
    experts: PositiveCount = 1
    in_features: PositiveCount
    out_features: PositiveCount
    alpha: float
    scaling: float
    a: str
    b: str
    a_dtype: Dtype
    b_dtype: Dtype

    @property
    def kind(self) -> str:
        """The last part of the module path, such as ``q_proj``."""
        return self.path.rpartition(".")[2]


class Inventory(Document):
    """Every LoRA pair of an adapter, ordered by module path.

    ``rank`` and ``scaling`` are what the config gives a module that no pattern names.
    """

    modules: tuple[ModuleFactors, ...]
    rank: Count
    scaling: float

    @cached_property
    def by_path(self) -> dict[str, ModuleFactors]:
        """The modules by their paths."""
        return {module.path: module for module in self.modules}

    @property
    def max_rank(self) -> int:
        """The largest rank of any module."""
        return max(module.rank for module in self.modules)

    @property
    def dtypes(self) -> tuple[Dtype, ...]:
        """The element types that occur, sorted by name."""
        return tuple(sorted({dtype for module in self.modules for dtype in (module.a_dtype, module.b_dtype)}))

    @property
    def shape_signature(self) -> Digest:
        """A digest of module paths and shapes.

        Equal signatures prove that two adapters fit the same shapes, not that they share a base.
        """
        lines = (f"{module.path} {module.in_features} {module.out_features}\n" for module in self.modules)
        return Digest.of_bytes("".join(lines).encode())
