"""Let the kernels' tests run with torch and pytest alone, where no project configuration is read."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = str(Path(__file__).parents[1])
if TESTS not in sys.path:
    sys.path.insert(0, TESTS)

from support.random_numbers import same_random_numbers as same_random_numbers  # noqa: E402
from support.triton_interpreter import interpreter_is_quick as interpreter_is_quick  # noqa: E402
