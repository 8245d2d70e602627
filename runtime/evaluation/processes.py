"""Several processes that answer, each with the bundle loaded for itself and with one thread.

A process loads with its first batch, takes the next one as it becomes free, and ends with its parent, however
that ends. Which process answers a batch changes nothing: the answers are put together by batch.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cached_property

import torch
from transformers.utils import logging

from ...files.progress import Progress, silent
from ...schemas.errors import SourceUnreadable
from ...schemas.evaluation import Abstention
from ..fitting import TaskData
from ..loaded_bundle import LoadedBundle
from ..processes import end_with_parent
from .answering import Answered, Batch, Machine, ModelAnswerer
from .tasks import EvaluationOptions, Task

# Loads the bundle in a process; it must be a function of a module, so that it can be sent there.
Load = Callable[[], LoadedBundle]


class ProcessAnswerer:
    """Processes that answer; ``answering_processes`` starts and ends them."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    @cached_property
    def machine(self) -> Machine:
        """What answers, as one process has it."""
        with _reported():
            return self._pool.submit(_describe).result()

    def answer(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Answered]]:
        """Yield the answers to each batch as they come.

        Raises:
            SourceUnreadable: a process ended by itself, or cannot load the bundle.
        """
        with _reported():
            futures = {self._pool.submit(_answer, batch): batch for batch in batches}
            for future in as_completed(futures):
                yield futures.pop(future), future.result()

    def check_decides(self) -> None:
        """Check that the bundle can leave a prompt to the base.

        Raises:
            UsageError: it decides token by token.
            SourceUnreadable: as ``answer``.
        """
        with _reported():
            self._pool.submit(_check_decides).result()

    def judge_abstention(
        self, foreign: Mapping[str, TaskData], options: EvaluationOptions, *, progress: Progress = silent
    ) -> Abstention:
        """Count what the bundle's decisions leave to the base, in one of the processes; progress is not seen.

        Raises:
            SourceUnreadable: as ``answer``.
        """
        with _reported():
            return self._pool.submit(_judge_abstention, dict(foreign), options).result()


@contextmanager
def answering_processes(count: int, load: Load, tasks: Sequence[Task]) -> Iterator[ProcessAnswerer]:
    """Start ``count`` processes within the block, which answer items of these tasks."""
    # A copy of this process would have torch's locks and none of its threads. Copies of a server that has
    # imported this module, and computed nothing, share what importing takes: seconds of each process.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(load, tuple(tasks)))
    try:
        yield ProcessAnswerer(pool)
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise SourceUnreadable(
            "one of the processes that answer ended by itself, as when the machine has no more memory",
            hint="ask again with fewer `--processes`; with `--run` nothing that was answered is asked again",
        ) from error


class _Worker:
    """One of the processes: its bundle is loaded when it is first asked for."""

    def __init__(self, load: Load, tasks: Sequence[Task]) -> None:
        self._load = load
        self._tasks = tasks

    @cached_property
    def answerer(self) -> ModelAnswerer:
        """The loaded bundle."""
        return ModelAnswerer(self._load(), self._tasks)


_worker: _Worker


def _begin(load: Load, tasks: Sequence[Task]) -> None:
    global _worker  # noqa: PLW0603 (what a process of a pool has, it has here)
    # The parent alone answers to Ctrl-C: it lets each process end its batch.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    torch.set_num_threads(1)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    _worker = _Worker(load, tasks)


def _describe() -> Machine:
    return _worker.answerer.machine


def _answer(batch: Batch) -> Answered:
    return _worker.answerer.answer_one(batch)


def _check_decides() -> None:
    _worker.answerer.check_decides()


def _judge_abstention(foreign: Mapping[str, TaskData], options: EvaluationOptions) -> Abstention:
    return _worker.answerer.judge_abstention(foreign, options)
