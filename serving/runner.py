"""The threads that answer batches, each with one call of ``generate`` for all rows of a batch."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from transformers import BatchEncoding, LogitsProcessorList, StoppingCriteriaList

from ..runtime.active_bundles import UNCHANGED, called_with
from ..runtime.loaded_bundle import LoadedBundle, end_tokens, generate_ids, place
from ..runtime.routing_record import RoutingRecord
from .errors import failure_of, stopping
from .limits import Limits
from .metrics import Metrics
from .names import Target
from .rows import Began, Ended, Row
from .scoring import score
from .steps import Account, RowSampling, RowsEnd
from .waiting import WaitingRows

# A thread ends with the pass that it computes.
_JOIN_SECONDS = 30.0


class BatchRunner:
    """The queue of a bundle's rows, and the threads that answer them.

    Args:
        loaded: the bundle.
        limits: of batches and queue.
        metrics: what is counted.
    """

    def __init__(self, loaded: LoadedBundle, limits: Limits, metrics: Metrics) -> None:
        self._loaded = loaded
        self._metrics = metrics
        self._waiting = WaitingRows(limits, metrics)
        self._running: set[Row] = set()
        metrics.running.set_function(lambda: len(self._running))
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"batch-{number}", daemon=True)
            for number in range(limits.batches)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether every thread runs."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def waiting(self) -> int:
        """The number of rows that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """The number of rows in batches."""
        return len(self._running)

    def put(self, rows: Sequence[Row]) -> None:
        """Let rows wait for a batch.

        Raises:
            ApiError: there is no room, or the threads are being stopped.
        """
        self._waiting.put(rows)

    def cancel(self, rows: Sequence[Row]) -> None:
        """End the answers of rows that are no longer wanted; one that has ended is left as it is."""
        for row in rows:
            row.is_cancelled = True
        self._waiting.discard(rows)

    def close(self) -> None:
        """End every row with an error, and stop the threads."""
        self._is_closed = True
        _stop((*self._waiting.close(), *self._running.copy()))
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)

    def _work(self) -> None:
        while rows := self._waiting.take():
            self._running.update(rows)
            if self._is_closed:
                # Between the queue and the set, where `close` does not see them.
                _stop(rows)
            self._run_safely(rows)
            self._running.difference_update(rows)

    def _run_safely(self, rows: Sequence[Row]) -> None:
        """Answer a batch; one that fails is answered row by row, so that a row's fault is its own."""
        try:
            self._run(rows)
        # Nor must it end the thread that answers the next batch.
        except Exception as error:  # noqa: BLE001
            if len(rows) == 1 or any(row.has_begun for row in rows):
                failure = failure_of(error)
                for row in rows:
                    row.emit(failure)
            else:
                for row in rows:
                    self._run_safely([row])

    def _run(self, rows: Sequence[Row]) -> None:
        if rows[0].top_logprobs is not None:
            self._score(rows)
            return
        model = self._loaded.model
        batch = self._batch_of(rows)
        self._metrics.prompt_tokens.inc(sum(len(row.ids) for row in rows))
        with self._as_asked(rows[0].target) as record:
            account = Account(rows, self._scope, record, batch["attention_mask"].bool().cpu())
            generate_ids(
                self._loaded,
                batch,
                max_new_tokens=max(row.max_new_tokens for row in rows),
                stopping_criteria=StoppingCriteriaList(
                    [
                        RowsEnd(
                            rows,
                            self._loaded.tokenizer,
                            account,
                            self._metrics,
                            end_tokens=end_tokens(model.generation_config),
                        )
                    ]
                ),
                logits_processor=LogitsProcessorList([RowSampling(rows, batch["input_ids"].device)]),
            )

    def _score(self, rows: Sequence[Row]) -> None:
        """Answer with the scores of the prompts' tokens: one by one, as they are of the whole vocabulary."""
        if len(rows) > 1:
            for each in rows:
                self._run_safely([each])
            return
        row = rows[0]
        if row.is_cancelled:
            return
        self._metrics.prompt_tokens.inc(len(row.ids))
        with self._as_asked(row.target) as record:
            account = Account(rows, self._scope, record, torch.ones(1, len(row.ids), dtype=torch.bool))
            scores = score(self._loaded, row)
            account.note_step([True])
        routed = account.routed(0)
        self._metrics.count_decision(routed)
        row.emit(Began(routed))
        row.emit("".join(scores.tokens))
        row.emit(Ended("length", row.max_new_tokens, routed, scores.field))

    @property
    def _scope(self) -> Any:
        return self._loaded.config.gate.scope

    @contextmanager
    def _as_asked(self, target: Target) -> Iterator[RoutingRecord | None]:
        """Let the target answer the calls of this thread; what the bundle chooses itself is recorded."""
        member = UNCHANGED if target.is_routed else target.member
        recording = self._loaded.routing() if target.is_routed else nullcontext()
        with called_with(self._loaded.model, member=member, changes={}), recording as record:
            yield record

    def _batch_of(self, rows: Sequence[Row]) -> BatchEncoding:
        widest = max(len(row.ids) for row in rows)
        pad = self._loaded.tokenizer.pad_token_id or 0
        ids = [[pad] * (widest - len(row.ids)) + [*row.ids] for row in rows]
        mask = [[0] * (widest - len(row.ids)) + [1] * len(row.ids) for row in rows]
        batch = BatchEncoding({"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)})
        return place(batch, self._loaded.model)


def _stop(rows: Iterable[Row]) -> None:
    for row in rows:
        row.emit(stopping())
        row.is_cancelled = True
