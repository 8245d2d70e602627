"""Facts about a base model: the subject of the rules that compare an adapter with it.

The facts are plain values. A caller that can read a base supplies them (the runtime, on a model without
memory), so nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .tensors import Tensors

LINEAR_KINDS = frozenset({"linear", "conv1d"})


@dataclass(frozen=True, slots=True)
class BaseModule:
    """A module with input and output features: ``linear``, ``conv1d``, or the class of another."""

    kind: str
    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """A base model without its weights.

    ``present`` maps an adapter's module paths to the paths that the base has today, as far as it has
    them; ``vocabulary`` is the number of rows of its embedding.
    """

    name: str
    modules: Mapping[str, BaseModule]
    present: Mapping[str, str]
    vocabulary: int | None
    ties_embedding: bool


@dataclass(frozen=True, slots=True)
class BaseComparison:
    """An adapter's tensors beside its base."""

    tensors: Tensors
    facts: BaseFacts
