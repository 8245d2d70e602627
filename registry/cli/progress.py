"""The progress of what takes long, on stderr: a bar on a terminal after a second, else a line a minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...files.progress import Bytes, Progress
from .output import describe_bytes, print_remark

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_DELAY_SECONDS = 1.0
# A log shows that a job of hours goes on, and has a few hundred lines of it.
_LINE_SECONDS = 60.0


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yield what a job reports its progress to; each step gets a bar, where one can be shown."""
    if not sys.stderr.isatty():
        yield Lines(_LINE_SECONDS)
        return
    bars: dict[str, _DelayedBar] = {}

    def report(step: str, done: int, total: int) -> None:
        bar = bars.setdefault(step, _DelayedBar(step, total))
        bar.advance_to(done)
        if done == total:
            bar.stop()

    try:
        yield report
    finally:
        for bar in bars.values():
            bar.stop()


class Lines:
    """Progress as lines on stderr, the first of them after some seconds, and so many seconds between them."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = time.monotonic()

    def __call__(self, step: str, done: int, total: int) -> None:
        """Print how far a step is, if it is time for a line."""
        now = time.monotonic()
        if now - self._last < self._seconds:
            return
        self._last = now
        if isinstance(total, Bytes):
            print_remark(f"{step}: {describe_bytes(done)} of {describe_bytes(total)}")
        else:
            print_remark(f"{step}: {done}" + (f" of {total}" if total else ""))


class _DelayedBar:
    """A bar that shows itself once the work has lasted a second."""

    def __init__(self, label: str, total: int) -> None:
        self._label = label
        self._total = total
        self._began = time.monotonic()
        self._shown: tuple[RichProgress, TaskID] | None = None

    def advance_to(self, done: int) -> None:
        """Show this much as done."""
        if self._shown is None and time.monotonic() - self._began > _DELAY_SECONDS:
            self._shown = self._show()
        if self._shown is not None:
            bar, task = self._shown
            bar.update(task, completed=done)

    def stop(self) -> None:
        """Take the bar away."""
        if self._shown is not None:
            self._shown[0].stop()

    def _show(self) -> tuple[RichProgress, TaskID]:
        from rich import progress
        from rich.console import Console

        bar = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.DownloadColumn() if isinstance(self._total, Bytes) else progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        bar.start()
        return bar, bar.add_task(self._label, total=self._total)
