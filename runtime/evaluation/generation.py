"""Greedy answers to a batch of prompts: the texts, the tokens read for them, and what they cost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from ..loaded_bundle import LoadedBundle, end_tokens, generate_ids
from .tally import ReadTokens


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to a batch, the tokens read for them, and the number of tokens written."""

    texts: list[str]
    read: ReadTokens
    new_tokens: int


class StopText(StoppingCriteria):
    """A criterion that ends a row as soon as its answer has the text ``stop`` in it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: str, prompt_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._prompt_tokens = prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Return which rows end, bool ``[B]``."""
        texts = _decode(self._tokenizer, input_ids[:, self._prompt_tokens :])
        return torch.tensor([self._stop in text for text in texts], device=input_ids.device)


def generate_answers(
    loaded: LoadedBundle, prompts: Sequence[str], *, max_new_tokens: int, stop: str | None, meter: Meter
) -> Answers:
    """Answer each prompt, up to ``stop``; the meter counts the time of the generation alone."""
    tokenizer = loaded.tokenizer
    batch = loaded.encode(list(prompts), padding=True)
    prompt_tokens = batch["input_ids"].shape[1]
    criteria = [] if stop is None else [StopText(tokenizer, stop, prompt_tokens)]
    with meter.running():
        ids = generate_ids(
            loaded,
            batch,
            max_new_tokens=max_new_tokens,
            stopping_criteria=StoppingCriteriaList(criteria),
        )
    written = ids[:, prompt_tokens:]
    texts = _decode(tokenizer, written)
    ends = torch.tensor(sorted(end_tokens(loaded.model.generation_config)), dtype=torch.int64)
    is_answer = _before_end(written, ends)
    if stop is not None:
        for row, text in enumerate(texts):
            if stop in text:
                is_answer[row, _tokens_until(stop, written[row], tokenizer) :] = False
        texts = [text.partition(stop)[0] for text in texts]
    ended = (~is_answer).any(dim=1)
    return Answers(
        texts=texts,
        # The last token of the longest answer was written and never read.
        read=ReadTokens(batch["attention_mask"].bool(), is_answer[:, :-1]),
        new_tokens=int(is_answer.sum() + ended.sum()),
    )


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> list[str]:
    return list(tokenizer.batch_decode(ids, skip_special_tokens=True))


def _before_end(written: Tensor, ends: Tensor) -> Tensor:
    """Return the tokens of each answer before the one that ends it, bool ``[B, N]``."""
    is_end = torch.isin(written, ends.to(written.device))
    return is_end.long().cumsum(dim=1) == 0


def _tokens_until(stop: str, ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens precede the one that completes ``stop``."""
    return next(count for count in range(len(ids)) if stop in _decode(tokenizer, ids[None, : count + 1])[0])


_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Linux: forget the peak of the resident set (proc_pid_clear_refs(5)).
_RESET_PEAK = "5"


class Meter:
    """The cost of one batch: time, tokens, and the peak of memory since the meter was made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = 0.0
        self._peak_is_own = _reset_peak(device)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of a block, to the end of its work on the device."""
        self._synchronise()
        began = time.perf_counter()
        yield
        self._synchronise()
        self._seconds += time.perf_counter() - began

    @property
    def seconds(self) -> float:
        """The time of all blocks."""
        return round(self._seconds, 6)

    @property
    def peak_memory_bytes(self) -> int | None:
        """The peak on a GPU, of the resident set elsewhere; None where the system has no such figure."""
        return _peak_bytes(self._device) if self._peak_is_own else None

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _reset_peak(device: torch.device) -> bool:
    """Reset the peak of the memory in use; return whether the system could."""
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
