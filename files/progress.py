"""How a workflow tells how far it got."""

from __future__ import annotations

from collections.abc import Callable

# Told the name of a step and how much of it is done: ("writing", 3, 36).
Advance = Callable[[str, int, int], None]


def step_of(advance: Advance | None, step: str) -> Callable[[int, int], None] | None:
    """What to call with (done, total) of one step; None where nobody listens."""
    return None if advance is None else lambda done, total: advance(step, done, total)


def chunks_of(advance: Advance | None, step: str, total_bytes: int) -> Callable[[int], None] | None:
    """What to call with the size of each chunk of one step; None where nobody listens."""
    if advance is None:
        return None
    done = 0

    def count(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        advance(step, done, total_bytes)

    return count
