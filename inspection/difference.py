"""Two inspected adapters against each other: their configs, and the delta of every module.

Memory holds the factors of one module of each; nothing of the size of a weight is formed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..files.progress import Progress, Step, silent
from ..files.reading import open_regular, read_errors
from ..schemas.base_name import is_other_base
from ..schemas.bundle import CONFIG_FILE, WEIGHTS_FILE
from ..schemas.difference import (
    AdapterDifference,
    AdapterSide,
    Change,
    GateChange,
    ModuleDifference,
    ModuleSide,
    TensorChange,
    UndescribedPart,
    ValueChange,
)
from ..schemas.document import load_json
from ..schemas.errors import AdapterRefused, InvalidDocument, SourceUnreadable
from ..schemas.facts import AdapterFacts
from ..schemas.finding import Effect
from ..schemas.inventory import Inventory, ModuleFactors
from .delta import Factors, Squares, measure, read_factors
from .header import Header
from .inspection import Inspection
from .keys import read_name
from .safetensors_file import TensorEntry

# PEFT keeps these as sets, so their order changes from one save to the next.
_SETS = frozenset({"target_modules", "modules_to_save", "exclude_modules"})
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """One of two adapters: what messages call it, its inspection, and its weights."""

    name: str
    inspection: Inspection
    weights: Path


@dataclass(frozen=True, slots=True)
class _Side:
    """An adapter whose config and weights could be read; without an inventory its scalings are not known."""

    name: str
    inspection: Inspection
    config: dict[str, Any]
    facts: AdapterFacts
    header: Header
    weights: Path

    @classmethod
    def of(cls, adapter: AdapterFiles) -> _Side:
        inspection = adapter.inspection
        config = _read_config(inspection)
        if config is None or inspection.facts is None or inspection.header is None:
            raise AdapterRefused(
                f"{adapter.name} cannot be compared: its files cannot be read as an adapter",
                findings=[each for each in inspection.findings if each.effect is not Effect.NONE],
            )
        return cls(adapter.name, inspection, config, inspection.facts, inspection.header, adapter.weights)

    @property
    def inventory(self) -> Inventory | None:
        return self.inspection.inventory

    @property
    def modules(self) -> dict[str, ModuleFactors]:
        return self.inventory.by_path if self.inventory else {}

    def described(self) -> AdapterSide:
        return AdapterSide(
            name=self.name,
            base=self.inspection.declared_base,
            weights_sha256=self.facts.weights_sha256,
            config_sha256=self.facts.config_sha256,
            verdict=self.inspection.verdict,
        )


def _read_config(inspection: Inspection) -> dict[str, Any] | None:
    if inspection.config_text is None:
        return None
    try:
        value = load_json(inspection.config_text.encode("utf-8"), what=CONFIG_FILE)
    except InvalidDocument:
        return None
    return value if isinstance(value, dict) else None


def compare_adapters(
    first: AdapterFiles, second: AdapterFiles, *, progress: Progress = silent
) -> AdapterDifference:
    """Return how the second adapter differs from the first.

    Raises:
        AdapterRefused: the files of one cannot be read as an adapter; the error has the findings.
        SourceUnreadable: weights cannot be read, or changed meanwhile.
    """
    one, other = _Side.of(first), _Side.of(second)
    base, other_base = one.inspection.declared_base, other.inspection.declared_base
    found = _compare_modules(one, other, progress) if one.inventory and other.inventory else []
    squares = [each for _, each in found if each is not None]
    return AdapterDifference(
        first=one.described(),
        second=other.described(),
        same_base=may_be_one_base(base, other_base),
        config=tuple(compare_values(one.config, other.config)),
        delta=Squares.total(squares).change() if squares else None,
        modules=tuple(sorted((module for module, _ in found), key=by_change)),
        tensors=tuple(_compare_other_tensors(one, other)),
        undescribed=tuple(_find_undescribed(one, other)),
        not_compared=_why_not_compared(one, other),
    )


def compare_values(first: dict[str, Any], second: dict[str, Any]) -> Iterator[ValueChange]:
    """Yield every key whose value differs, and in objects that both have every key of those."""
    for key in sorted({*first, *second}):
        one, other = first.get(key), second.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            for inner in compare_values(one, other):
                yield inner.model_copy(update={"key": f"{key}.{inner.key}"})
        elif key not in first or key not in second or not _are_equal(key, one, other):
            yield ValueChange(key=key, change=change_of(key in first, key in second), first=one, second=other)


def change_of(in_first: bool, in_second: bool, *, is_same: bool = False) -> Change:
    """Return the change of a thing that one of two versions has, or both."""
    if in_first and in_second:
        return "same" if is_same else "changed"
    return "removed" if in_first else "added"


def by_change(part: ModuleDifference | GateChange) -> tuple[bool, float]:
    """Return a key that orders by the size of the change; what has none, such as an added gate, is first."""
    relative = part.delta.relative if part.delta else None
    return part.change == "same" or relative is not None, -(relative or 0.0)


def may_be_one_base(one: str | None, other: str | None) -> bool:
    """Return whether two sides have the same base, or no name that shows them to have different ones."""
    return one == other or not is_other_base(one, other)


@contextmanager
def open_both(first: Path, second: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open the weights of both sides for reading."""
    # A link was followed to get here, or refused.
    with (
        open_regular(first, follows_links=True) as file,
        open_regular(second, follows_links=True) as other_file,
        read_errors(WEIGHTS_FILE),
    ):
        yield file, other_file


def _are_equal(key: str, one: Any, other: Any) -> bool:
    if key in _SETS and isinstance(one, list) and isinstance(other, list):
        return sorted(map(_spell, one)) == sorted(map(_spell, other))
    # In Python true equals 1.
    return _spell(one) == _spell(other)


def _spell(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _compare_modules(
    one: _Side, other: _Side, progress: Progress
) -> list[tuple[ModuleDifference, Squares | None]]:
    paths = sorted({*one.modules, *other.modules})
    step = Step("comparing modules", len(paths), progress)
    found = []
    with open_both(one.weights, other.weights) as (first, second):
        for path in paths:
            left, right = one.modules.get(path), other.modules.get(path)
            factors = (read_factors(first, one.header, left), read_factors(second, other.header, right))
            squares = measure(*factors)
            found.append((_describe_module(path, left, right, factors, squares), squares))
            step.advance()
    return found


def _describe_module(
    path: str,
    left: ModuleFactors | None,
    right: ModuleFactors | None,
    factors: tuple[Factors | None, Factors | None],
    squares: Squares | None,
) -> ModuleDifference:
    one, other = factors
    is_same = one is not None and other is not None and one.is_like(other)
    return ModuleDifference(
        path=path,
        change=change_of(one is not None, other is not None, is_same=is_same),
        first=_side_of(left),
        second=_side_of(right),
        delta=squares.change() if squares else None,
    )


def _side_of(module: ModuleFactors | None) -> ModuleSide | None:
    if module is None:
        return None
    return ModuleSide.from_value(module.model_dump(include=set(ModuleSide.model_fields)), what=module.path)


def _compare_other_tensors(one: _Side, other: _Side) -> Iterator[TensorChange]:
    first, second = _other_tensors(one), _other_tensors(other)
    with open_both(one.weights, other.weights) as (file, other_file):
        for name in sorted({*first, *second}):
            left, right = first.get(name), second.get(name)
            is_same = _have_same_bytes(file, left, other_file, right)
            change = change_of(left is not None, right is not None, is_same=is_same)
            yield TensorChange(name=name, kind=str(read_name(name)[0]), change=change)


def _other_tensors(side: _Side) -> dict[str, TensorEntry]:
    described = {name for module in side.modules.values() for name in (module.a, module.b)}
    return {entry.name: entry for entry in side.header.tensors if entry.name not in described}


def _have_same_bytes(
    file: BinaryIO, entry: TensorEntry | None, other_file: BinaryIO, other: TensorEntry | None
) -> bool:
    if entry is None or other is None:
        return False
    if (entry.dtype, entry.shape) != (other.dtype, other.shape):
        return False
    file.seek(entry.begin)
    other_file.seek(other.begin)
    left = entry.size_bytes
    while left:
        count = min(left, _CHUNK_BYTES)
        data, other_data = file.read(count), other_file.read(count)
        if len(data) != count or len(other_data) != count:
            raise SourceUnreadable("the weights file has changed while it was read")
        if data != other_data:
            return False
        left -= count
    return True


def _find_undescribed(one: _Side, other: _Side) -> Iterator[UndescribedPart]:
    found = [
        {each.code: each.title for each in side.inspection.findings if each.effect is Effect.NOT_FUSABLE}
        for side in (one, other)
    ]
    for code, title in sorted((found[0] | found[1]).items()):
        yield UndescribedPart(code=code, title=title, in_first=code in found[0], in_second=code in found[1])


def _why_not_compared(one: _Side, other: _Side) -> str | None:
    unknown = [side.name for side in (one, other) if side.inventory is None]
    if not unknown:
        return None
    return f"modules, ranks and scalings of {' and '.join(unknown)} cannot be worked out"
