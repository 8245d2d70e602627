"""The time that a test waits for an event that must come."""

from __future__ import annotations

# A busy machine is slow, and only a hang takes this long. Above all: a wait never decides what a test finds.
# Each test as a whole may take longer (`timeout` in pyproject.toml).
PATIENCE_SECONDS = 300.0
