"""Several adapters that are to be fused: the subject of the rules about whether they go together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .inspection import Inspection


@dataclass(frozen=True, slots=True)
class Companions:
    """Inspected adapters by name, and the base of each as far as it is known.

    ``stated_base`` overrides all of them.

    ``alike`` holds pairs of names with the cosine between their deltas, where it was measured. With
    ``trust_tensors`` modules that a config does not declare are the adapter's own. ``headless`` names those
    that were trained on a model without an output layer.
    """

    members: Mapping[str, Inspection]
    bases: Mapping[str, str | None]
    stated_base: str | None = None
    alike: Mapping[tuple[str, str], float] = field(default_factory=dict)
    trust_tensors: bool = False
    headless: frozenset[str] = frozenset()

    def paths(self) -> dict[str, set[str]]:
        """Return the module paths of each adapter that has any."""
        return {
            name: set(inspection.inventory.by_path)
            for name, inspection in self.members.items()
            if inspection.inventory
        }

    def shapes(self) -> Iterator[tuple[str, dict[tuple[int, int], list[str]]]]:
        """Yield each module path with its shapes (in, out) and the adapters that have each shape."""
        found: dict[str, dict[tuple[int, int], list[str]]] = defaultdict(lambda: defaultdict(list))
        for name, inspection in self.members.items():
            for module in inspection.inventory.modules if inspection.inventory else ():
                found[module.path][module.in_features, module.out_features].append(name)
        yield from sorted(found.items())
