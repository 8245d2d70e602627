"""The plan of a fuse, computed from headers alone; ``--dry-run`` prints it."""

from __future__ import annotations

from .bundle import ModulePath
from .document import Count, Document, PositiveCount
from .gate_choices import InitialGate
from .inventory import Dtype
from .names import Name


class Conflict(Document):
    """A reason why these members cannot become one bundle: which of them disagree, and about what."""

    members: tuple[str, ...]
    subject: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.message}; {self.remedy}"


class PlannedMember(Document):
    """One member, in order; ``cast_from`` lists its element types that the bundle's cannot hold exactly.

    ``trusts_tensors`` is whether it has modules that its config does not declare.
    """

    name: Name
    adapter: str
    rank: Count
    scaling: float
    modules: Count
    cast_from: tuple[Dtype, ...]
    renamed_modules: dict[ModulePath, ModulePath]
    trusts_tensors: bool = False


class PlannedModule(Document):
    """One module: every member's rank (0 where it is absent) and scaling, and the bytes that come of it."""

    path: ModulePath
    in_features: PositiveCount
    out_features: PositiveCount
    ranks: tuple[Count, ...]
    scalings: tuple[float, ...]
    rows: Count
    size_bytes: Count
    padding_bytes: Count


class FusePlan(Document):
    """The whole plan; it can be carried out when ``conflicts`` is empty."""

    base: str | None
    base_revision: str | None
    task_type: str | None
    auto_mapping: dict[str, str] | None
    dtype: Dtype
    top_k: Count
    temperature: float
    gate: InitialGate
    seed: Count
    with_experts: bool
    members: tuple[PlannedMember, ...]
    modules: tuple[PlannedModule, ...]
    conflicts: tuple[Conflict, ...]
    warnings: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(module.size_bytes for module in self.modules)

    @property
    def padding_bytes(self) -> int:
        """Bytes of the zero rows that alignment adds."""
        return sum(module.padding_bytes for module in self.modules)
