"""What answering costs: time, tokens and memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from ...schemas.evaluation import Cost

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Linux: forget the peak of the resident set (proc_pid_clear_refs(5)).
_RESET_PEAK = "5"


class Meter:
    """Counts over one mode; memory from when it was made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = 0.0
        self._prompt_tokens = self._new_tokens = 0
        self._peak_is_own = _reset_peak(device)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of a block, to the end of what it left on the device."""
        self._synchronise()
        began = time.perf_counter()
        yield
        self._synchronise()
        self._seconds += time.perf_counter() - began

    def count(self, *, prompt_tokens: int, new_tokens: int) -> None:
        """Count a batch's tokens."""
        self._prompt_tokens += prompt_tokens
        self._new_tokens += new_tokens

    def result(self) -> Cost:
        """What it came to."""
        return Cost(
            seconds=round(self._seconds, 3),
            prompt_tokens=self._prompt_tokens,
            new_tokens=self._new_tokens,
            new_tokens_per_second=round(self._new_tokens / self._seconds, 3) if self._seconds else 0.0,
            peak_memory_bytes=_peak_bytes(self._device) if self._peak_is_own else None,
        )

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _reset_peak(device: torch.device) -> bool:
    """Whether the peak from here on can be told from what was before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    with suppress(OSError):
        _RESET.write_text(_RESET_PEAK)
        return True
    return False


def _peak_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lines = _STATUS.read_text().splitlines()
    kibibytes = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return None if kibibytes is None else int(kibibytes) * 1024
