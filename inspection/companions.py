"""Several adapters that are to be fused: the subject of the rules about whether they go together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .inspection import Inspection


@dataclass(frozen=True, slots=True)
class Companions:
    """Inspected adapters by the names they are called; ``stated_base`` overrules what they declare.

    ``alike`` holds pairs of names with the cosine between their deltas, where it was measured.
    """

    members: Mapping[str, Inspection]
    stated_base: str | None = None
    alike: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def shapes(self) -> Iterator[tuple[str, dict[tuple[int, int], list[str]]]]:
        """Each module path, with who has it in which shape (in, out)."""
        found: dict[str, dict[tuple[int, int], list[str]]] = defaultdict(lambda: defaultdict(list))
        for name, inspection in self.members.items():
            for module in inspection.inventory.modules if inspection.inventory else ():
                found[module.path][module.in_features, module.out_features].append(name)
        yield from sorted(found.items())
