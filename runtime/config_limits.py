"""The largest numbers of a base's config that say how often something is repeated, by their keys."""

from __future__ import annotations

import re

# The deepest models have a few hundred layers, and the largest vocabularies less than a million labels.
_MAX_LAYERS = 10_000
_MAX_REPEATED = 1_000_000
_MAX_POSITIONS = 1 << 24
_LAYERS = re.compile(r"layer|depth|block|stage")
_POSITIONS = re.compile(r"position|ctx|context|length|seq")
_REPEATED = re.compile(r"^(n|num)_")


def limit_of(key: str) -> int | None:
    """Return the largest number that a config may have under a key; None without a bound."""
    if _POSITIONS.search(key):
        return _MAX_POSITIONS
    if _LAYERS.search(key):
        return _MAX_LAYERS
    return _MAX_REPEATED if _REPEATED.search(key) else None
