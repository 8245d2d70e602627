"""The same random numbers in every run of a test, alone or among others."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Begin torch's random numbers anew for each test: a sum that happens to cancel has a larger error."""
    # A test that imports no torch draws none.
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
