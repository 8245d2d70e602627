"""Triton's interpreter without what it repeats at every call of a function: a third of its time.

A plugin of pytest, too, for a session that has no other settings.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest


@contextmanager
def known_builtins() -> Iterator[None]:
    """Look for the functions of a module of Triton once within the block, not at each call of a function."""
    import triton.language as tl
    from triton.runtime import interpreter

    known: dict[Any, list[str]] = {}

    def patch_builtin(place: Any, builder: Any, scope: Any) -> None:
        if place not in known:
            members = inspect.getmembers(place)
            known[place] = [name for name, member in members if tl.core.is_builtin(member)]
        for name in known[place]:
            member = getattr(place, name)
            # Those that were replaced already are none any more.
            if tl.core.is_builtin(member):
                interpreter._patch_attr(place, name, member, builder, scope)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_builtin", patch_builtin)
        yield


@pytest.fixture(scope="session", autouse=True)
def interpreter_is_quick() -> Iterator[None]:
    """Whether the interpreter runs the kernels is chosen by triton's own variable."""
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    with known_builtins() if is_interpreted else nullcontext():
        yield
