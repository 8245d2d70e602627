"""The garbage collector, paused while an inspection builds its values.

A header of forty thousand tensors becomes hundreds of thousands of values that all stay until the end;
searching them for cycles again and again takes longer than reading them. An inspection makes almost no
cycles, and the memory that it holds is bounded by the size of a header.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock


class _Hold:
    """The number of running inspections, and whether the collector was enabled before the first."""

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
    """Pause the collector within the block; the last of several threads enables it again."""
    _HOLD.begin()
    try:
        yield
    finally:
        _HOLD.end()
