"""The number of examples that a property is tried on: few in every run of the tests, more on request."""

from __future__ import annotations

import os

from hypothesis import settings

TIMES = int(os.environ.get("METEORA_EXAMPLES", "1"))


def examples(count: int) -> settings:
    """Return the settings for a property: ``count`` examples, times METEORA_EXAMPLES."""
    return settings(max_examples=count * TIMES)
