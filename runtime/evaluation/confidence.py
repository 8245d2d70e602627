"""The confidence of decisions about prompts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ..scopes.decision import Decision


def judge_prompts(decisions: Sequence[Decision]) -> list[tuple[float, bool]]:
    """Return for each prompt of a batch its confidence, and whether it was left to the base.

    A prompt of several segments is left to the base if all of them are; its confidence is the highest.
    """
    prompts: dict[int, list[Decision]] = {}
    for each in decisions:
        prompts.setdefault(each.sequence, []).append(each)
    return [
        (max(each.confidence for each in own), not any(each.members for each in own))
        for own in prompts.values()
    ]


def quartiles_of(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the quartiles of at least one value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
