"""A progress bar for what takes longer than a second, on stderr when that is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_DELAY_SECONDS = 1.0


@contextmanager
def progress_bar(label: str, total_bytes: int) -> Iterator[Callable[[int], None] | None]:
    """Yield a function to call with the size of each chunk in bytes; None where no bar can be shown."""
    if not sys.stderr.isatty():
        yield None
        return
    bar = _DelayedBar(label, total_bytes)
    try:
        yield bar.advance
    finally:
        bar.stop()


@contextmanager
def step_bar() -> Iterator[Callable[[str, int, int], None] | None]:
    """Yield a function to call with (step, done, total), which shows a bar; None without a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    bars: dict[str, _DelayedBar] = {}

    def advance(step: str, done: int, total: int) -> None:
        bar = bars.setdefault(step, _DelayedBar(step, total, counts_bytes=False))
        bar.advance_to(done)
        if done == total:
            bar.stop()

    try:
        yield advance
    finally:
        for bar in bars.values():
            bar.stop()


class _DelayedBar:
    """A bar that shows itself once the work has lasted a second."""

    def __init__(self, label: str, total: int, *, counts_bytes: bool = True) -> None:
        self._label = label
        self._total = total
        self._counts_bytes = counts_bytes
        self._done = 0
        self._began = time.monotonic()
        self._shown: tuple[Progress, TaskID] | None = None

    def advance(self, size_bytes: int) -> None:
        """Count a chunk."""
        self.advance_to(self._done + size_bytes)

    def advance_to(self, done: int) -> None:
        """Show this much as done."""
        self._done = done
        if self._shown is None and time.monotonic() - self._began > _DELAY_SECONDS:
            self._shown = self._show()
        if self._shown is not None:
            progress, task = self._shown
            progress.update(task, completed=self._done)

    def stop(self) -> None:
        """Take the bar away."""
        if self._shown is not None:
            self._shown[0].stop()

    def _show(self) -> tuple[Progress, TaskID]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn() if self._counts_bytes else MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        progress.start()
        return progress, progress.add_task(self._label, total=self._total)
