"""Triton's interpreter, asked each question once: it takes two seconds to start."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from meteora_registry.kernels import triton_check


@pytest.fixture(autouse=True, scope="session")
def triton_replies() -> Iterator[None]:
    """Keep the reply to each request, byte for byte, for the next bundle with the same factors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_check, "_ask_interpreter", functools.cache(triton_check._ask_interpreter))
        yield
