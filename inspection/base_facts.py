"""Facts about a base model: the subject of the rules that compare an adapter with it.

The facts are plain values. A caller that can read a base supplies them (the runtime, on a model without
memory), so nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from .tensors import Pair, Tensors

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

    Attributes:
        name: what a finding calls it.
        modules: those that state their features, by path.
        present: an adapter's module and parameter paths by the paths that the base has today, as far as it
            has them.
        vocabulary: the number of rows of its embedding.
        ties_embedding: whether its output layer and its embedding are one parameter.
        adaptable: every module by path, and whether PEFT can put a LoRA layer in its place.
        shared: the embeddings that only lend their weight to others, and are never called.
        default_targets: what PEFT adapts in this architecture where a config names no targets.
        architectures: the classes that its config names.
    """

    name: str
    modules: Mapping[str, BaseModule]
    present: Mapping[str, str]
    vocabulary: int | None
    ties_embedding: bool
    adaptable: Mapping[str, bool] = field(default_factory=dict)
    shared: frozenset[str] = frozenset()
    default_targets: tuple[str, ...] | None = None
    architectures: tuple[str, ...] = ()


@dataclass(frozen=True)
class BaseComparison:
    """An adapter's tensors beside its base."""

    tensors: Tensors
    facts: BaseFacts

    @cached_property
    def paths(self) -> Mapping[str, str]:
        """The adapter's paths by the base's, as far as the base has them."""
        own = {pair.path: base_path(pair, self.tensors) for pair in self.tensors.pairs}
        return {path: self.facts.present[old] for path, old in own.items() if old in self.facts.present}

    def module_of(self, pair: Pair) -> BaseModule | None:
        """Return the base's module with features that a pair is for, if there is one."""
        return self.facts.modules.get(self.paths.get(pair.path, ""))

    def modules(self) -> Iterator[Pair]:
        """Yield the pairs of modules, not of bare parameters, that the base has as modules."""
        for pair in self.tensors.modules:
            if self.paths.get(pair.path) in self.facts.adaptable:
                yield pair


def base_path(pair: Pair, tensors: Tensors) -> str:
    """Return the path by which the base has a pair's module: that in the layer that a repeated one copies."""
    path = pair.parameter or pair.path
    originals = _original_layers(tensors.config.value.get("layer_replication"))
    if not originals:
        return path
    parts = path.split(".")
    for position, part in enumerate(parts):
        if part.isdecimal() and int(part[:9]) < len(originals):
            return ".".join([*parts[:position], str(originals[int(part)]), *parts[position + 1 :]])
    return path


def path_in_larger_model(path: str, modules: Container[str]) -> str | None:
    """Return where a model of text and images has the module of a text model; None if it has it nowhere.

    Both are loaded from the same checkpoint, by two classes.
    """
    inside = path.removeprefix("model.")
    places = (f"{outer}{inside}" for outer in _OUTER_PATHS)
    return next((place for place in places if place != path and place in modules), None)


def _original_layers(ranges: object) -> list[int]:
    """Return the number in the base of each layer that `layer_replication` makes."""
    if not isinstance(ranges, list):
        return []
    originals: list[int] = []
    for each in ranges:
        if isinstance(each, list) and len(each) == 2 and all(type(number) is int for number in each):
            originals += range(max(0, each[0]), min(each[1], _MAX_LAYERS))
        if len(originals) > _MAX_LAYERS:
            return []
    return originals


# Of a text model within a larger one, in the classes of transformers.
_OUTER_PATHS = (
    "model.language_model.",
    "language_model.model.",
    "language_model.",
    "model.text_model.",
    "thinker.model.",
)
# No model has as many layers; a config can claim any number.
_MAX_LAYERS = 10_000
