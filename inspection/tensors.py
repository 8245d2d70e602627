"""The tensors of an adapter, each in exactly one bucket, and the pairs that the factors form."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..schemas.inventory import Dtype, Inventory, ModuleFactors
from .config import SCALE_FIELDS, Config, Resolution, scale
from .header import Header
from .keys import FactorKey, TensorKind, is_module_path, read_name, strip_marks
from .safetensors_file import TensorEntry
from .targets import SavedModules, TargetParameters

if TYPE_CHECKING:
    from .base_facts import BaseFacts

_FLOATS = frozenset(Dtype)
# A module with this parameter alone goes by its own path.
_ONLY_WEIGHT = "weight"


@dataclass(frozen=True, slots=True)
class Pair:
    """The tensors of one module, or of one parameter, such as the stacked weights of all experts.

    A tensor whose name occurs twice after normalising is in ``repeated``. ``is_sound`` is whether these are
    the two factors of a linear module, whatever the config declares.

    Attributes:
        path: the module's path, or the parameter's; that of a module's only weight is the module's.
        parameter: the parameter's own path, by which patterns find it; None for a module.
        is_inside: whether a module around this one is adapted, too.
    """

    path: str
    a: TensorEntry | None
    b: TensorEntry | None
    marks: tuple[str, ...]
    repeated: tuple[TensorEntry, ...] = ()
    parameter: str | None = None
    is_inside: bool = False
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

    ``pairs`` are ordered by module path, ``others`` hold the tensors other than factors, by kind. ``facts``
    are those of the base, where it is at hand.
    """

    config: Config
    header: Header
    pairs: tuple[Pair, ...]
    others: dict[TensorKind, tuple[TensorEntry, ...]]
    resolution: Resolution
    facts: BaseFacts | None = None

    @classmethod
    def sort(cls, header: Header, config: Config, facts: BaseFacts | None = None) -> Tensors:
        """Put every tensor of the header into its bucket."""
        factors: dict[str, list[_Factor]] = defaultdict(list)
        others: dict[TensorKind, list[TensorEntry]] = defaultdict(list)
        saved = SavedModules.of(config)
        for entry in header.tensors:
            kind, key = read_name(entry.name)
            if key is not None:
                factors[key.path].append((key, entry))
            elif kind in _MAY_BE_SAVED and saved.hold(strip_marks(entry.name)[0]):
                others[TensorKind.SAVED].append(entry)
            else:
                others[kind].append(entry)
        parameters = TargetParameters.of(config)
        pairs = []
        for path, found in factors.items():
            own, misnamed = _pairs_of(path, found, parameters)
            pairs += own
            others[TensorKind.MISNAMED] += misnamed
        ordered = tuple(sorted(pairs, key=lambda pair: pair.path))
        resolution = Resolution.of(config, {pair.path: pair.parameter or pair.path for pair in ordered})
        kept = {kind: tuple(entries) for kind, entries in others.items() if entries}
        return cls(config, header, ordered, kept, resolution, facts)

    @property
    def modules(self) -> tuple[Pair, ...]:
        """The pairs of modules, without those of bare parameters."""
        return tuple(pair for pair in self.pairs if pair.parameter is None)

    @property
    def unsound(self) -> Iterator[Pair]:
        """The modules that do not have the two factors of a linear module."""
        return (pair for pair in self.pairs if not pair.is_sound)

    def of_kind(self, kind: TensorKind) -> tuple[TensorEntry, ...]:
        """Return the tensors of one kind other than factors."""
        return self.others.get(kind, ())


_Factor = tuple[FactorKey, TensorEntry]
_MAY_BE_SAVED = frozenset({TensorKind.UNKNOWN, TensorKind.FULL_BIAS, TensorKind.FULL_WEIGHT})


def _pairs_of(
    path: str, found: Sequence[_Factor], parameters: TargetParameters
) -> tuple[list[Pair], list[TensorEntry]]:
    """Return the pairs of one module, and the factors nested in it for which no parameter is declared."""
    depths = {key.depth for key, _ in found}
    names = parameters.of_module(path, len(depths))
    if names is None:
        own = [factor for factor in found if factor[0].depth == 0]
        return [_pair(path, own)] if own else [], [entry for key, entry in found if key.depth]
    pairs = []
    # The innermost wrapper is that of the parameter that the module registered first.
    for name, depth in zip(names, sorted(depths, reverse=True), strict=True):
        own = [factor for factor in found if factor[0].depth == depth]
        shown = path if name == _ONLY_WEIGHT else f"{path}.{name}"
        pairs.append(_pair(shown, own, parameter=f"{path}.{name}"))
    return pairs, []


def _pair(path: str, found: Sequence[_Factor], parameter: str | None = None) -> Pair:
    by_factor: dict[str, list[TensorEntry]] = {"A": [], "B": []}
    for key, entry in found:
        by_factor[key.factor].append(entry)
    repeated = tuple(entry for entries in by_factor.values() for entry in entries[1:])
    marks = tuple(sorted({mark for key, _ in found for mark in key.marks}))
    first = {factor: entries[0] if entries else None for factor, entries in by_factor.items()}
    is_inside = any(key.is_inside for key, _ in found)
    return Pair(path, first["A"], first["B"], marks, repeated, parameter, is_inside)


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
        experts = count_experts(pair, resolution.ranks[pair.path])
        if experts is None:
            return None
        modules.append(_module(pair.path, pair.a, pair.b, alpha, experts, rslora=config.uses_rslora))
    default = scale(config.alpha, config.rank, rslora=config.uses_rslora)
    return Inventory(modules=tuple(modules), rank=config.rank, scaling=default)


def count_experts(pair: Pair, rank: int | None) -> int | None:
    """Return how many matrices of this rank a pair holds, or None if that is not a whole number.

    A module has one; a parameter has one for each expert, whose factors PEFT stacks.
    """
    if pair.a is None or rank is None or pair.a.shape[0] % rank:
        return None
    experts = pair.a.shape[0] // rank
    return experts if experts == 1 or pair.parameter is not None else None


def _module(
    path: str, a: TensorEntry, b: TensorEntry, alpha: float, experts: int, *, rslora: bool
) -> ModuleFactors:
    rank = a.shape[0] // experts
    return ModuleFactors(
        path=path,
        rank=rank,
        experts=experts,
        in_features=a.shape[1],
        out_features=b.shape[0],
        alpha=alpha,
        scaling=scale(alpha, rank, rslora=rslora),
        a=a.name,
        b=b.name,
        a_dtype=Dtype(a.dtype),
        b_dtype=Dtype(b.dtype),
    )
