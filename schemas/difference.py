"""The difference of two versions of an adapter, or of a bundle: what a reviewer of a new one asks about.

The delta of a module is ``s B A``. ``relative`` is the norm of its change over the norm of the first one;
``cosine`` is near 1 for a retrain that only went on, and near 0 for one that started anew.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, FiniteFloat

from .digest import Digest
from .document import Count, Document, PositiveCount
from .finding import Verdict

Change = Literal["added", "removed", "changed", "same"]


class ValueChange(Document):
    """One key of a config whose value differs; that of an object in it is ``outer.inner``.

    The value of a key that one side lacks is None.
    """

    key: str
    change: Change
    first: Any = None
    second: Any = None


class DeltaChange(Document):
    """The change of one delta, or of all deltas of a group together.

    A number is None where it does not exist: the change relative to a delta of zero, the cosine with one, and
    norms beyond the range of a number.
    """

    first_norm: FiniteFloat | None = Field(ge=0)
    second_norm: FiniteFloat | None = Field(ge=0)
    difference_norm: FiniteFloat | None = Field(ge=0)
    relative: FiniteFloat | None = Field(ge=0)
    cosine: FiniteFloat | None = Field(ge=-1, le=1)


class ModuleSide(Document):
    """A module's factors in one of two adapters, without their numbers."""

    rank: PositiveCount
    experts: PositiveCount
    alpha: FiniteFloat
    scaling: FiniteFloat
    in_features: PositiveCount
    out_features: PositiveCount


class ModuleDifference(Document):
    """One module; a side that does not adapt it is None.

    ``delta`` is None where the two have other shapes, or numbers that are not finite.
    """

    path: str
    change: Change
    first: ModuleSide | None
    second: ModuleSide | None
    delta: DeltaChange | None


class TensorChange(Document):
    """A tensor other than the factors of a linear module, which the deltas do not describe."""

    name: str
    kind: str
    change: Change


class UndescribedPart(Document):
    """A part of an adapter that ``s B A`` does not hold, by the rule that keeps it out of a bundle."""

    code: str
    title: str
    in_first: bool
    in_second: bool


class AdapterSide(Document):
    """One of two adapters that are compared."""

    name: str
    base: str | None
    weights_sha256: Digest
    config_sha256: Digest
    verdict: Verdict


class AdapterDifference(Document):
    """Two versions of an adapter.

    ``modules`` are ordered by the size of their change, the largest first. ``not_compared`` is why there
    are none, where ranks and scalings of one side cannot be worked out.
    """

    meteora_difference: Literal[1] = 1
    kind: Literal["adapters"] = "adapters"
    first: AdapterSide
    second: AdapterSide
    same_base: bool
    config: tuple[ValueChange, ...]
    delta: DeltaChange | None
    modules: tuple[ModuleDifference, ...]
    tensors: tuple[TensorChange, ...]
    undescribed: tuple[UndescribedPart, ...]
    not_compared: str | None = None

    @property
    def is_same(self) -> bool:
        """Whether both have the same bytes."""
        one, other = self.first, self.second
        return (one.weights_sha256, one.config_sha256) == (other.weights_sha256, other.config_sha256)


class MemberChange(Document):
    """A member of two bundles; ``facts`` has what differs: digests, origin, license, rank, scaling."""

    name: str
    change: Change
    facts: tuple[ValueChange, ...] = ()


class GateChange(Document):
    """The gate of one module; ``delta`` compares the rows of the members that both bundles have.

    It is None where a side has no such gate, or one of another number of features.
    """

    path: str
    kind: Literal["gate", "request gate"]
    change: Change
    delta: DeltaChange | None


class HeldOutChange(Document):
    """A count of decisions about held-out prompts in both bundles, each of its own number of prompts."""

    what: str
    first: Count
    first_of: Count
    second: Count
    second_of: Count


class BundleSide(Document):
    """One of two bundles that are compared."""

    name: str
    base: str | None
    manifest_sha256: Digest


class BundleDifference(Document):
    """Two versions of a bundle; gates are ordered by the size of their change, the largest first."""

    meteora_difference: Literal[1] = 1
    kind: Literal["bundles"] = "bundles"
    first: BundleSide
    second: BundleSide
    same_base: bool
    config: tuple[ValueChange, ...]
    members: tuple[MemberChange, ...]
    gates: tuple[GateChange, ...]
    held_out: tuple[HeldOutChange, ...]

    @property
    def is_same(self) -> bool:
        """Whether both have the same manifest, and with it the same files."""
        return self.first.manifest_sha256 == self.second.manifest_sha256
