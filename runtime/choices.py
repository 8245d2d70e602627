"""Choices of a block of code or a call in place of a bundle's own: a forced pass, another rule, a record.

A choice for the model holds in every thread. A choice for a call holds in the thread that makes the call, and
there it comes first.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Value = TypeVar("Value")


class _Choice(Generic[Value]):
    def __init__(self, value: Value, thread: int, *, for_call: bool) -> None:
        self.value = value
        self.thread = thread
        self.for_call = for_call


class Choices(Generic[Value]):
    """The choices in force, the latest last; each ends by itself, in whatever order the blocks end."""

    def __init__(self) -> None:
        self._made: list[_Choice[Value]] = []

    @contextmanager
    def made(self, value: Value, *, for_call: bool = False) -> Iterator[None]:
        """Let a value be chosen within the block."""
        choice = _Choice(value, threading.get_ident(), for_call=for_call)
        self._made.append(choice)
        try:
            yield
        finally:
            # By identity: another thread's choice may have an equal value.
            self._made.remove(choice)

    @property
    def latest(self) -> Value | None:
        """The latest choice for a call of this thread; else the latest for the model; None without any."""
        made, thread = tuple(self._made), threading.get_ident()
        for choice in reversed(made):
            if choice.for_call and choice.thread == thread:
                return choice.value
        return next((choice.value for choice in reversed(made) if not choice.for_call), None)

    @property
    def nearest(self) -> Value | None:
        """The latest choice that this thread made; else the latest for the model; None without any."""
        made, thread = tuple(self._made), threading.get_ident()
        own = next((choice.value for choice in reversed(made) if choice.thread == thread), None)
        return self.latest if own is None else own
