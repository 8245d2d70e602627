"""The tensors of an adapter, each in exactly one bucket, and the pairs that the factors form."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..schemas.inventory import Dtype, Inventory, ModuleFactors
from .config import SCALE_FIELDS, Config, Resolution, scale
from .header import Header
from .keys import TensorKind, is_module_path, read_name
from .safetensors_file import TensorEntry

_FLOATS = frozenset(Dtype)


@dataclass(frozen=True, slots=True)
class Pair:
    """The tensors of one module; one whose name occurs twice after normalising is in ``repeated``.

    ``is_sound`` is whether these are the two factors of a linear module, whatever the config declares.
    """

    path: str
    a: TensorEntry | None
    b: TensorEntry | None
    marks: tuple[str, ...]
    repeated: tuple[TensorEntry, ...] = ()
    is_sound: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_sound", self._judge())

    @property
    def any_name(self) -> str | None:
        """The name of a tensor of this module."""
        entry = self.a or self.b
        return entry.name if entry else None

    def _judge(self) -> bool:
        if self.a is None or self.b is None or self.repeated or not is_module_path(self.path):
            return False
        if len(self.a.shape) != 2 or len(self.b.shape) != 2 or self.a.dtype not in _FLOATS:
            return False
        sizes = (*self.a.shape, *self.b.shape)
        return self.b.dtype in _FLOATS and self.a.shape[0] == self.b.shape[1] and min(sizes) > 0


@dataclass(frozen=True, slots=True)
class Tensors:
    """An adapter's tensors beside its config.

    ``pairs`` are ordered by module path, ``others`` hold the tensors other than factors, by kind.
    """

    config: Config
    header: Header
    pairs: tuple[Pair, ...]
    others: dict[TensorKind, tuple[TensorEntry, ...]]
    resolution: Resolution

    @classmethod
    def sort(cls, header: Header, config: Config) -> Tensors:
        """Put every tensor of the header into its bucket."""
        factors: dict[str, list[tuple[str, TensorEntry, tuple[str, ...]]]] = defaultdict(list)
        others: dict[TensorKind, list[TensorEntry]] = defaultdict(list)
        for entry in header.tensors:
            kind, key = read_name(entry.name)
            if key is None:
                others[kind].append(entry)
            else:
                factors[key.path].append((key.factor, entry, key.marks))
        pairs = tuple(_pair(path, factors[path]) for path in sorted(factors))
        resolution = Resolution.of(config, [pair.path for pair in pairs])
        return cls(config, header, pairs, {kind: tuple(found) for kind, found in others.items()}, resolution)

    @property
    def unsound(self) -> Iterator[Pair]:
        """The modules that do not have the two factors of a linear module."""
        return (pair for pair in self.pairs if not pair.is_sound)

    def of_kind(self, kind: TensorKind) -> tuple[TensorEntry, ...]:
        """Return the tensors of one kind other than factors."""
        return self.others.get(kind, ())


def _pair(path: str, found: list[tuple[str, TensorEntry, tuple[str, ...]]]) -> Pair:
    by_factor: dict[str, list[TensorEntry]] = {"A": [], "B": []}
    for factor, entry, _ in found:
        by_factor[factor].append(entry)
    repeated = tuple(entry for entries in by_factor.values() for entry in entries[1:])
    marks = tuple(sorted({mark for _, _, marks in found for mark in marks}))
    first = {factor: entries[0] if entries else None for factor, entries in by_factor.items()}
    return Pair(path, first["A"], first["B"], marks, repeated)


def build_inventory(tensors: Tensors) -> Inventory | None:
    """Return the inventory of an adapter whose pairs and scalings are all in order, else None."""
    config, resolution = tensors.config, tensors.resolution
    if not tensors.pairs or config.rank is None or config.alpha is None or not resolution.is_complete:
        return None
    if any(not pattern.can_match for name in SCALE_FIELDS for pattern in config.patterns_in(name)):
        return None
    modules = []
    for pair in tensors.pairs:
        alpha = resolution.alphas[pair.path]
        if not pair.is_sound or alpha is None or pair.a is None or pair.b is None:
            return None
        if pair.a.shape[0] != resolution.ranks[pair.path]:
            return None
        modules.append(_module(pair.path, pair.a, pair.b, alpha, rslora=config.uses_rslora))
    default = scale(config.alpha, config.rank, rslora=config.uses_rslora)
    return Inventory(modules=tuple(modules), rank=config.rank, scaling=default)


def _module(path: str, a: TensorEntry, b: TensorEntry, alpha: float, *, rslora: bool) -> ModuleFactors:
    rank = a.shape[0]
    return ModuleFactors(
        path=path,
        rank=rank,
        in_features=a.shape[1],
        out_features=b.shape[0],
        alpha=alpha,
        scaling=scale(alpha, rank, rslora=rslora),
        a=a.name,
        b=b.name,
        a_dtype=Dtype(a.dtype),
        b_dtype=Dtype(b.dtype),
    )
