"""The progress of a long job: one callable to report it to, and a counter for its steps.

The caller of a job may pass any function of (step, done, total), called for example with ("writing", 3, 36);
``silent`` is the default, so no code asks whether there is one. A job reports each of its steps through a
``Step``. How this is shown is decided by the caller, and nothing here measures time.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

# Called with the name of a step, how much of it is done, and how much there is, 0 if that is not known.
Progress = Callable[[str, int, int], None]


def silent(step: str, done: int, total: int) -> None:
    """Report nothing: the progress of a job that no one watches."""


class Bytes(int):
    """A total that counts bytes, so that it can be shown in kilobytes or megabytes."""


class Step:
    """One step of a job, and how much of it is done; several threads may advance it."""

    def __init__(self, name: str, total: int, progress: Progress = silent) -> None:
        self._name = name
        self._total = total
        self._progress = progress
        self._done = 0
        self._lock = Lock()

    def advance(self, amount: int = 1) -> None:
        """Report that so much more is done, to one thread at a time."""
        with self._lock:
            self._done += amount
            self._progress(self._name, self._done, self._total)


# For a part of a step whose caller does not count.
UNCOUNTED = Step("", 0)
