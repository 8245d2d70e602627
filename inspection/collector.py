"""The garbage collector held back while an inspection builds its values.

A header of forty thousand tensors becomes hundreds of thousands of values that all stay until the end;
looking through them for cycles again and again takes longer than reading them. An inspection makes no
cycles to speak of, and what it holds is bounded by the size of a header.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock


class _Hold:
    """How many inspections run, and whether the collector was at work before the first of them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._holders = 0
        self._was_enabled = False

    def begin(self) -> None:
        with self._lock:
            if self._holders == 0:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._holders += 1

    def end(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0 and self._was_enabled:
                gc.enable()


_HOLD = _Hold()


@contextmanager
def collector_held() -> Iterator[None]:
    """Hold the collector back within the block; the last of several threads lets it go again."""
    _HOLD.begin()
    try:
        yield
    finally:
        _HOLD.end()
