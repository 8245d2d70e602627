"""Two bundles against each other: their configs, members, gates and decisions; without torch.

A gate has one row for each member. Rows are compared by the members' names, so a bundle whose members are in
another order has the same gates; one module's are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np

from ..files.progress import Progress, Step, silent
from ..inspection.delta import Matrix, measure_rows
from ..inspection.difference import by_change, change_of, compare_values, may_be_one_base, open_both
from ..inspection.scan import read_tensor
from ..schemas.bundle import (
    TENSOR_GATE,
    TENSOR_GATE_BIAS,
    TENSOR_REQUEST_GATE,
    TENSOR_REQUEST_GATE_BIAS,
    WEIGHTS_FILE,
    BundleMember,
    tensor_name,
)
from ..schemas.difference import (
    BundleDifference,
    BundleSide,
    GateChange,
    HeldOutChange,
    MemberChange,
)
from ..schemas.errors import BundleRefused
from ..schemas.manifest import ManifestMember
from .opened import Bundle

_Kind = Literal["gate", "request gate"]
_TENSORS: dict[_Kind, tuple[str, str]] = {
    "gate": (TENSOR_GATE, TENSOR_GATE_BIAS),
    "request gate": (TENSOR_REQUEST_GATE, TENSOR_REQUEST_GATE_BIAS),
}
# Members and modules have comparisons of their own; the rest of the request gates are their calibration.
_COMPARED_APART = ("members", "target_modules", "inference_mode")
_REQUEST_FIELDS = ("modules", "background", "forms")


def compare_bundles(
    first: Bundle, second: Bundle, *, names: tuple[str, str], progress: Progress = silent
) -> BundleDifference:
    """Return how the second bundle differs from the first.

    Args:
        first: the bundle that changes count from.
        second: the other one.
        names: what they are called.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        BundleRefused, InvalidDocument: one is not a bundle.
        SourceUnreadable: a file is missing or cannot be read.
    """
    base, other_base = (each.config.base_model_name_or_path for each in (first, second))
    return BundleDifference(
        first=_side(first, names[0]),
        second=_side(second, names[1]),
        same_base=may_be_one_base(base, other_base),
        config=tuple(compare_values(_values(first), _values(second))),
        members=tuple(_compare_members(first, second)),
        gates=tuple(sorted(_compare_gates(first, second, progress), key=by_change)),
        held_out=tuple(_compare_held_out(first, second)),
    )


def _side(bundle: Bundle, name: str) -> BundleSide:
    return BundleSide(
        name=name, base=bundle.config.base_model_name_or_path, manifest_sha256=bundle.manifest_sha256
    )


def _values(bundle: Bundle) -> dict[str, Any]:
    """Return what a bundle's config decides, beside its members and the numbers of a calibration."""
    value = bundle.config.model_dump(mode="json")
    for key in _COMPARED_APART:
        value.pop(key)
    value["dtype"] = str(bundle.dtype)
    value["modules"] = len(bundle.config.target_modules)
    request = value["gate"].get("request")
    if request is not None:
        value["gate"]["request"] = {key: request[key] for key in _REQUEST_FIELDS}
    return value


def _compare_members(first: Bundle, second: Bundle) -> Iterator[MemberChange]:
    sides = [_facts_by_member(each) for each in (first, second)]
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        one, other = (side.get(name) for side in sides)
        facts = tuple(compare_values(one, other)) if one and other else ()
        change = change_of(one is not None, other is not None, is_same=not facts)
        yield MemberChange(name=name, change=change, facts=facts)


def _facts_by_member(bundle: Bundle) -> dict[str, dict[str, Any]]:
    entries = {entry.name: entry for entry in bundle.manifest.members}
    if tuple(entries) != bundle.config.names:
        raise BundleRefused(
            f"`{bundle.folder}` has other members in its manifest than in its config",
            hint="`meteora-registry verify` lists what is wrong with it",
        )
    return {member.name: _facts(entries[member.name], member) for member in bundle.config.members}


def _facts(entry: ManifestMember, member: BundleMember) -> dict[str, Any]:
    return {
        "weights_sha256": entry.weights_sha256,
        "config_sha256": entry.config_sha256,
        "origin": str(entry.origin),
        "commit": entry.origin.commit,
        "license": entry.license,
        "rank": member.rank,
        "scaling": member.scaling,
    }


def _compare_gates(first: Bundle, second: Bundle, progress: Progress) -> Iterator[GateChange]:
    owned, others = frozenset(_gates_of(first)), frozenset(_gates_of(second))
    places = sorted(owned | others)
    step = Step("comparing gates", len(places), progress)
    with open_both(first.folder / WEIGHTS_FILE, second.folder / WEIGHTS_FILE) as (one, other):
        for place in places:
            gate = _read_gate(first, one, place) if place in owned else None
            other_gate = _read_gate(second, other, place) if place in others else None
            yield _compare_gate(place, gate, other_gate)
            step.advance()


_Place = tuple[str, _Kind]


def _gates_of(bundle: Bundle) -> Iterator[_Place]:
    for path in bundle.config.module_paths:
        if bundle.config.has_gate(path):
            yield path, "gate"
        if bundle.config.request_classes(path):
            yield path, "request gate"


@dataclass(frozen=True, slots=True)
class _GateRows:
    """One gate: a row for each class by its name, the bias as its last number."""

    classes: tuple[str, ...]
    rows: Matrix

    def of(self, classes: Sequence[str]) -> Matrix:
        return self.rows[[self.classes.index(name) for name in classes]]


def _read_gate(bundle: Bundle, file: BinaryIO, place: _Place) -> _GateRows:
    path, kind = place
    weight, bias = (tensor_name(path, tensor) for tensor in _TENSORS[kind])
    rows = read_tensor(file, bundle.header[weight])
    constants = read_tensor(file, bundle.header[bias]) if bias in bundle.header else np.zeros(len(rows))
    request = bundle.config.gate.request
    # No member has a name with a space.
    background = [f"{name} (background)" for name in request.background] if request else []
    classes = (*bundle.config.names, *(background if kind == "request gate" else ()))
    return _GateRows(classes, np.column_stack([rows, constants]))


def _compare_gate(place: _Place, one: _GateRows | None, other: _GateRows | None) -> GateChange:
    squares, is_same = None, False
    if one is not None and other is not None and one.rows.shape[1] == other.rows.shape[1]:
        common = [name for name in one.classes if name in other.classes]
        rows, other_rows = one.of(common), other.of(common)
        is_same = set(one.classes) == set(other.classes) and np.array_equal(rows, other_rows)
        squares = measure_rows(rows, other_rows) if common else None
    return GateChange(
        path=place[0],
        kind=place[1],
        change=change_of(one is not None, other is not None, is_same=is_same),
        delta=squares.change() if squares else None,
    )


def _compare_held_out(first: Bundle, second: Bundle) -> Iterator[HeldOutChange]:
    one, other = (each.config.gate.request and each.config.gate.request.held_out for each in (first, second))
    if one is None or other is None:
        return
    for what, count, of in (
        ("own prompts given to their member", "right", "prompts"),
        ("own prompts left to the base", "own_left", "prompts"),
        ("foreign prompts left to the base", "general_left", "general_prompts"),
    ):
        found = [(getattr(each, count), getattr(each, of)) for each in (one, other)]
        if all(value is not None for value, _ in found):
            (value, total), (other_value, other_total) = found
            yield HeldOutChange(
                what=what, first=value, first_of=total, second=other_value, second_of=other_total
            )
