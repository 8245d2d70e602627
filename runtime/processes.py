"""Processes: those of a job that ``torchrun`` or ``accelerate launch`` started, and those of a pool."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import connection
from typing import TypeVar

import torch

from ..schemas.errors import UsageError

Value = TypeVar("Value")
# The others wait while the first reads a base, or verifies a bundle. The libraries' own 10 to 30 minutes
# are for collectives within a step.
_PATIENCE = timedelta(days=1)
# What torch needs to connect processes.
_FROM_LAUNCHER = ("RANK", "MASTER_ADDR", "MASTER_PORT")


def process_count() -> int:
    """Return how many processes the launcher started; 1 without one."""
    found = os.environ.get("WORLD_SIZE", "1")
    return max(1, int(found)) if found.isdecimal() else 1


def is_first() -> bool:
    """Return whether this is the process that writes and prints."""
    return process_count() == 1 or os.environ.get("RANK", "0") == "0"


def uses_fsdp() -> bool:
    """Return whether the launcher asks for FSDP, which divides a model among the processes."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def join_processes() -> None:
    """Connect the processes, if there are several; once or more often is the same.

    Raises:
        UsageError: ``WORLD_SIZE`` was not set by a launcher, as in some containers.
    """
    if process_count() == 1:
        return
    if missing := [name for name in _FROM_LAUNCHER if name not in os.environ]:
        raise UsageError(
            f"`WORLD_SIZE` is {process_count()}, but `{missing[0]}` is not set: no launcher started this "
            "process",
            hint="start it with `accelerate launch` or `torchrun`, or unset `WORLD_SIZE`",
        )
    from accelerate import PartialState  # type: ignore[import-untyped]  # it has no types

    PartialState(cpu=not torch.accelerator.is_available(), timeout=_PATIENCE)


def place_of_base() -> str | dict[str, int] | None:
    """Return where transformers loads a base, as its `device_map`; None for the processor's memory.

    One process takes all GPUs there are, and several one each, unless FSDP is to divide the model among them.
    """
    if not torch.cuda.is_available():
        return None
    if process_count() == 1:
        return "auto"
    return None if uses_fsdp() else {"": int(os.environ.get("LOCAL_RANK", "0"))}


def from_first(make: Callable[[], Value]) -> Value:
    """Return in every process what ``make`` returns in the first, which alone calls it.

    An exception is raised there alone; the launcher then ends the others.
    """
    if process_count() == 1:
        return make()
    from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]  # it has no types

    join_processes()
    # Between processes of one job: nothing of it comes from a file.
    shared = [make() if is_first() else None]
    broadcast_object_list(shared)
    return shared[0]  # type: ignore[return-value]  # the first has put it there


def end_with_parent() -> None:
    """Have this process, which ``multiprocessing`` started, end when its parent does, however that ends."""
    threading.Thread(target=_wait_for_parent_and_end, daemon=True).start()


def _wait_for_parent_and_end() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        # A process that waits for its next piece of work would wait for ever.
        os._exit(1)
