"""Let the kernels' tests run with torch and pytest alone, where no project configuration is read."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

TESTS = str(Path(__file__).parents[1])
if TESTS not in sys.path:
    sys.path.insert(0, TESTS)


@pytest.fixture(scope="session", autouse=True)
def _interpreter_is_quick() -> Iterator[None]:
    from support.triton_interpreter import known_builtins

    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    with known_builtins() if is_interpreted else nullcontext():
        yield
