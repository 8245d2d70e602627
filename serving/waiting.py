"""The queue of rows that wait, bounded, from which each thread takes those that can be answered together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence

from .errors import queue_full, stopping
from .limits import Limits
from .metrics import Metrics
from .rows import Row

# Requests that come at the same moment share a batch, for a delay that no one notices.
_GATHER_SECONDS = 0.01


class WaitingRows:
    """The rows that wait, in the order in which they came."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._rows: deque[Row] = deque()
        self._changed = threading.Condition()
        # Held by the one thread that gathers, so that others do not take from its batch.
        self._gathering = threading.Lock()
        self._is_closed = False
        metrics.waiting.set_function(self.__len__)

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, rows: Sequence[Row]) -> None:
        """Add the rows of one request, or none of them.

        Raises:
            ApiError: there is no room, or the queue is closed.
        """
        with self._changed:
            if self._is_closed:
                raise stopping()
            most = self._limits.max_waiting
            if self._rows and len(self._rows) + len(rows) > most:
                raise queue_full(len(self._rows), most)
            self._rows.extend(rows)
            self._changed.notify_all()

    def discard(self, rows: Iterable[Row]) -> None:
        """Remove rows that are no longer wanted, if they still wait."""
        with self._changed:
            gone = {*rows}
            self._rows = deque(row for row in self._rows if row not in gone)
            self._changed.notify_all()

    def take(self) -> list[Row]:
        """Wait for rows, and take the oldest with others for the same target; none once it is closed."""
        taken: list[Row] = []
        with self._gathering, self._changed:
            # Rows may be discarded while others are waited for.
            while not taken and not self._is_closed:
                self._changed.wait_for(lambda: self._rows or self._is_closed)
                self._changed.wait_for(self._is_enough, _GATHER_SECONDS)
                taken = self._batch()
                self._rows = deque(row for row in self._rows if row not in taken)
            self._changed.notify_all()
        return taken

    def _is_enough(self) -> bool:
        return len(self._rows) >= self._limits.max_batch or self._is_closed

    def _batch(self) -> list[Row]:
        batch: list[Row] = []
        longest = 0
        for row in self._rows:
            if batch and not row.goes_with(batch[0]):
                continue
            widest = max(longest, len(row.ids))
            if batch and widest * (len(batch) + 1) > self._limits.max_batch_tokens:
                continue
            batch.append(row)
            longest = widest
            if len(batch) == self._limits.max_batch:
                break
        return batch

    def close(self) -> list[Row]:
        """Refuse new rows, let the threads end, and return the rows that still waited."""
        with self._changed:
            self._is_closed = True
            left = [*self._rows]
            self._rows.clear()
            self._changed.notify_all()
        return left
