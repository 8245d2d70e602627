"""The time that a test waits for an event that must come."""

from __future__ import annotations

import time
from collections.abc import Callable

# A busy machine is slow, and only a hang takes this long. Above all: a wait never decides what a test finds.
# Each test as a whole may take longer (`timeout` in pyproject.toml).
PATIENCE_SECONDS = 300.0


def wait_until(holds: Callable[[], object]) -> None:
    """Wait for what must come to hold."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
