"""A difference of two versions as tables, which text and Markdown show alike."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...inspection.report.markdown import code, plain
from ...schemas.difference import (
    AdapterDifference,
    BundleDifference,
    Change,
    DeltaChange,
    GateChange,
    ModuleDifference,
    ModuleSide,
    ValueChange,
)
from ...schemas.quotation import escape

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_SHOWN_CHARACTERS = 60
_SHOWN_ITEMS = 6
# A config may have a hundred thousand keys.
_MAX_ROWS = 100
_DIGEST_CHARACTERS = 12
_ABSENT = "-"
# The two have other shapes, or a number is not finite.
_NOT_MEASURED = "not measured"
_CHANGES: tuple[Change, ...] = ("changed", "added", "removed", "same")
_NO_EVALUATION = "evaluation: not in both; `meteora-registry eval compare` compares two files of them"
# A number, a percentage, a count: nothing that Markdown or a host would take for more.
_PLAIN = re.compile(r"[A-Za-z0-9.% ()>-]+")


@dataclass(frozen=True, slots=True)
class Section:
    """Lines of text, and a table below them; ``rows`` is empty where there is none."""

    lines: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def tables_of(found: AdapterDifference | BundleDifference, *, most: int | None) -> list[Section]:
    """Return the sections of a difference, the sides and the sum first.

    ``most`` is how many modules are listed one by one; None lists all that changed.
    """
    sections = [Section(tuple(_sides(found)))]
    if found.is_same:
        return sections
    if found.config:
        rows = tuple((change.key, *_values(change)) for change in found.config)
        sections.append(Section(columns=("config", "first", "second"), rows=rows))
    if isinstance(found, AdapterDifference):
        sections += _adapter_sections(found, most)
    else:
        sections += _bundle_sections(found, most)
    return sections if most is None else [part for each in sections for part in _bound(each, _MAX_ROWS)]


def _bound(section: Section, most: int | None) -> Iterator[Section]:
    """Yield a section, and of one with more than ``most`` rows the first and the number of the others."""
    rest = 0 if most is None else len(section.rows) - most
    yield replace(section, rows=section.rows[:most])
    if rest > 0:
        yield Section(lines=(f"{rest} more rows: `--all` shows them",))


def to_markdown(sections: Sequence[Section]) -> str:
    """Return sections as Markdown, foreign text in code spans."""
    parts = []
    for section in sections:
        if section.lines:
            parts.append("\n".join(f"- {plain(line)}" for line in section.lines))
        if section.rows:
            head = ["| " + " | ".join(section.columns) + " |", "|" + "---|" * len(section.columns)]
            rows = ["| " + " | ".join(map(_cell, row)) + " |" for row in section.rows]
            parts.append("\n".join([*head, *rows]))
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else code(text)


def _sides(found: AdapterDifference | BundleDifference) -> Iterator[str]:
    for label, side in (("first", found.first), ("second", found.second)):
        verdict = f", {side.verdict}" if isinstance(found, AdapterDifference) else ""  # type: ignore[union-attr]
        yield f"{label}: {side.name}{verdict}"
    if found.is_same:
        yield "both have the same bytes"
        return
    if not found.same_base:
        bases = (f"`{escape(str(side.base))}`" for side in (found.first, found.second))
        yield f"the bases differ: {' and '.join(bases)}; equal deltas on them are not the same model"
    if isinstance(found, AdapterDifference):
        yield from _sum_up(found)


def _sum_up(found: AdapterDifference) -> Iterator[str]:
    if found.not_compared is not None:
        yield f"not compared: {found.not_compared}"
        return
    counts = Counter(module.change for module in found.modules)
    listed = ", ".join(f"{counts[each]} {each}" for each in _CHANGES if counts[each])
    yield f"modules: {listed}"
    if found.delta is not None:
        yield f"all deltas together: change {_percent(found.delta)}, cosine {_cosine(found.delta)}"


def _adapter_sections(found: AdapterDifference, most: int | None) -> Iterator[Section]:
    changed = [module for module in found.modules if module.change != "same"]
    groups = list(_group(changed))
    rows = tuple(row for _, row in sorted(groups, key=lambda each: each[0]))
    yield Section(columns=("modules", "count", "change", "cosine", "rank", "scaling"), rows=rows)
    measured = [module for module in changed if module.change == "changed" and module.delta]
    if len(measured) > 1:
        listed = tuple((module.path, *_measured(module.change, module.delta)) for module in measured)
        yield from _bound(Section(columns=("largest changes", "change", "cosine"), rows=listed), most)
    kinds = Counter((tensor.kind, tensor.change) for tensor in found.tensors)
    if kinds:
        counted = tuple((kind, change, str(count)) for (kind, change), count in sorted(kinds.items()))
        yield Section(columns=("other tensors", "change", "count"), rows=counted)
    if found.undescribed:
        parts = tuple(
            (f"{part.code} {part.title}", _yes(part.in_first), _yes(part.in_second))
            for part in found.undescribed
        )
        yield Section(columns=("not in the deltas", "first", "second"), rows=parts)


def _bundle_sections(found: BundleDifference, most: int | None) -> Iterator[Section]:
    members = [member for member in found.members if member.change != "same"]
    if members:
        rows = []
        for member in members:
            rows += [(member.name, change.key, *_values(change)) for change in member.facts]
            rows += [(member.name, member.change, _ABSENT, _ABSENT)] if not member.facts else []
        yield Section(columns=("members", "what", "first", "second"), rows=tuple(rows))
    else:
        yield Section(lines=(f"members: all {len(found.members)} are the same",))
    changed = [gate for gate in found.gates if gate.change != "same"]
    if changed:
        yield Section(columns=("gates", "count", "change", "cosine"), rows=tuple(_gate_groups(changed)))
    else:
        yield Section(lines=(f"gates: all {len(found.gates)} are the same",))
    if len(changed) > 1:
        rows = [(gate.path, gate.kind, *_measured(gate.change, gate.delta)) for gate in changed]
        listed = Section(columns=("largest changes", "kind", "change", "cosine"), rows=tuple(rows))
        yield from _bound(listed, most)
    if found.held_out:
        counts = tuple(
            (each.what, _share(each.first, each.first_of), _share(each.second, each.second_of))
            for each in found.held_out
        )
        yield Section(columns=("held-out prompts", "first", "second"), rows=counts)
    else:
        yield Section(lines=(_NO_EVALUATION,))


def _group(modules: Iterable[ModuleDifference]) -> Iterator[tuple[tuple[float, str], tuple[str, ...]]]:
    """Yield a row for the modules of one name in all layers that have the same ranks and scalings."""
    groups: dict[tuple[str, ...], list[ModuleDifference]] = defaultdict(list)
    for module in modules:
        sides = module.first, module.second
        key = (_NUMBER.sub("*", module.path), _kind(module), _pair(sides, "rank"), _pair(sides, "scaling"))
        groups[key].append(module)
    for (path, kind, rank, scaling), members in groups.items():
        delta = _total([module.delta for module in members if module.delta])
        size = math.inf if delta is None or delta.relative is None else delta.relative
        measured = _measured(kind, delta)
        yield (-size, path), (path, str(len(members)), *measured, rank, scaling)


def _gate_groups(gates: Sequence[GateChange]) -> Iterator[tuple[str, ...]]:
    groups: dict[tuple[str, str, str], list[GateChange]] = defaultdict(list)
    for gate in gates:
        groups[_NUMBER.sub("*", gate.path), gate.kind, _kind(gate)].append(gate)
    for (path, kind, change), members in groups.items():
        delta = _total([gate.delta for gate in members if gate.delta])
        name = path if kind == "gate" else f"{path} ({kind})"
        yield name, str(len(members)), *_measured(change, delta)


def _kind(part: ModuleDifference | GateChange) -> str:
    """Return what parts in one row have in common: their change, and that it could be measured."""
    return part.change if part.change != "changed" or part.delta else _NOT_MEASURED


def _total(deltas: Sequence[DeltaChange]) -> DeltaChange | None:
    """Return the change of several deltas together; None if there is none, or a norm is not known."""
    norms = [(each.first_norm, each.second_norm, each.difference_norm) for each in deltas]
    known = [(one, other, change) for one, other, change in norms if None not in (one, other, change)]
    if not deltas or len(known) < len(norms):
        return None
    first, second, difference = (math.hypot(*(norm[place] or 0.0 for norm in known)) for place in range(3))
    products = ((each.cosine or 0.0, each.first_norm or 0.0, each.second_norm or 0.0) for each in deltas)
    product = math.fsum(map(math.prod, products))
    lengths = first * second
    return DeltaChange(
        first_norm=first,
        second_norm=second,
        difference_norm=difference,
        relative=difference / first if first else None,
        cosine=max(-1.0, min(1.0, product / lengths)) if lengths else None,
    )


def _measured(change: str, delta: DeltaChange | None) -> tuple[str, str]:
    if change != "changed":
        return change, _ABSENT
    return (_percent(delta), _cosine(delta)) if delta else (_NOT_MEASURED, _ABSENT)


def _percent(delta: DeltaChange) -> str:
    return "from zero" if delta.relative is None else f"{100 * delta.relative:.3g} %"


def _cosine(delta: DeltaChange) -> str:
    return _ABSENT if delta.cosine is None else f"{delta.cosine:.4f}"


def _pair(sides: tuple[ModuleSide | None, ModuleSide | None], field: str) -> str:
    found = [_ABSENT if side is None else f"{getattr(side, field):.4g}" for side in sides]
    return found[0] if found[0] == found[1] else f"{found[0]} -> {found[1]}"


def _share(count: int, of: int) -> str:
    return f"{count} of {of} ({100 * count / of:.1f} %)" if of else f"{count} of 0"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _values(change: ValueChange) -> tuple[str, str]:
    one, other = change.first, change.second
    if isinstance(one, list) and isinstance(other, list):
        return _items(one, other), _items(other, one)
    return (
        _ABSENT if change.change == "added" else _value(change.key, one),
        _ABSENT if change.change == "removed" else _value(change.key, other),
    )


def _value(key: str, value: Any) -> str:
    if key.endswith("sha256") and isinstance(value, str):
        return value[:_DIGEST_CHARACTERS]
    return escape(json.dumps(value, ensure_ascii=False), limit=_SHOWN_CHARACTERS)


def _items(own: list[Any], others: list[Any]) -> str:
    """Return a short list, or of a long one what the other side lacks."""
    text = json.dumps(own, ensure_ascii=False)
    if len(text) <= _SHOWN_CHARACTERS:
        return escape(text)
    spelled = {json.dumps(item, ensure_ascii=False) for item in others}
    lacking = [text for item in own if (text := json.dumps(item, ensure_ascii=False)) not in spelled]
    more = f" and {len(lacking) - _SHOWN_ITEMS} more" if len(lacking) > _SHOWN_ITEMS else ""
    named = ", ".join(escape(item, limit=_SHOWN_CHARACTERS) for item in lacking[:_SHOWN_ITEMS])
    return f"{len(own)} items, here alone: {named or 'none'}{more}"
