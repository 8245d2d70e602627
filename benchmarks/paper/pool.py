"""Units of work on a few processes of one thread each.

Results are handed back in the order in which units end, and the parent alone writes them, so a rows file has
one writer. A worker ends when its parent does, however that ended: else a killed run would leave processes
that wait for work for ever.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

import torch

Unit = TypeVar("Unit")
Result = TypeVar("Result")


def run_units(
    work: Callable[[Unit], Result], units: Sequence[Unit], processes: int
) -> Iterator[tuple[Unit, Result]]:
    """Yield each unit with its result as they end; in this process where ``processes`` is 1.

    Args:
        work: a function of a module, which a new process can import.
        units: taken in order by whichever process is free.
        processes: how many of them, each with one thread.
    """
    if processes == 1:
        torch.set_num_threads(1)
        for unit in units:
            yield unit, work(unit)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin) as pool:
        waiting = {pool.submit(work, unit): unit for unit in units}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin() -> None:
    # Seconds of imports, which the parent of such processes has no use for.
    from benchmarks.gates.measure import quiet
    from meteora_registry.runtime.processes import end_with_parent

    quiet()
    torch.set_num_threads(1)
    end_with_parent()
