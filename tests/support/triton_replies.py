"""Triton's interpreter, asked each question once and in a warm process: it takes three seconds to start."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from meteora_registry.kernels import triton_check


def keep_replies(patch: pytest.MonkeyPatch, run: Callable[..., Any]) -> None:
    """Keep the reply to each request, byte for byte, and have ``run`` start the processes."""
    start = SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired)
    patch.setattr(triton_check, "subprocess", start)
    patch.setattr(triton_check, "_ask_interpreter", functools.cache(triton_check._ask_interpreter))
