"""The number of examples that a property is tried on: few in every run of the tests, more on request."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

from hypothesis import settings

T = TypeVar("T")

TIMES = int(os.environ.get("METEORA_EXAMPLES", "1"))


def examples(count: int) -> settings:
    """Return the settings for a property: ``count`` examples, times METEORA_EXAMPLES."""
    return settings(max_examples=count * TIMES)


def a_third_of(cases: Sequence[T], place: int) -> Sequence[T]:
    """Return every third case, from another one on at each place; all of them with METEORA_EXAMPLES.

    For the pairs of two long lists: each case of the one meets a third of the other's.
    """
    return cases[place % 3 :: 3] if TIMES == 1 else cases
