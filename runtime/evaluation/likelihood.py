"""The choice that a model finds likeliest behind a prompt: nothing is written, its probabilities are read.

The prompt is read once, and each choice behind it on a copy of the prompt's cache, as ``generate`` would
write it. So a scope that decides by the prompt decides as it does for an answer, without the choice.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...schemas.errors import DataRefused
from ...schemas.evaluation import Metric
from ...schemas.quotation import quote
from ..loaded_bundle import LoadedBundle


@dataclass(frozen=True, slots=True)
class ReadPrompt:
    """A prompt that was read.

    Attributes:
        mask: the prompt's attention mask, int64 ``[1, T]``.
        cache: what the model keeps of it.
        last: the log-probabilities of the token behind it, float32 ``[1, 1, V]``.
    """

    mask: Tensor
    cache: Any
    last: Tensor


def read_prompt(loaded: LoadedBundle, prompt: str) -> ReadPrompt:
    """Read a prompt of at least one token; the block that is open chooses who serves."""
    batch = loaded.encode(prompt)
    with torch.no_grad():
        read = loaded.model(**batch, use_cache=True, **_last_only(loaded))
    last = torch.log_softmax(read.logits[:, -1:].float(), dim=-1)
    return ReadPrompt(batch["attention_mask"], read.past_key_values, last)


def log_probabilities(loaded: LoadedBundle, read: ReadPrompt, choices: Sequence[str]) -> list[float]:
    """Return the natural logarithm of each choice's probability behind a prompt, of all its tokens together.

    A choice is encoded by itself and without special tokens, as the fit encodes responses: where the
    tokenizer needs a space before a word, the choice or the prompt has to have it.
    """
    ids = [loaded.encode(choice, add_special_tokens=False)["input_ids"] for choice in choices]
    with torch.no_grad():
        return [_log_probability(loaded, read, own) for own in ids]


def likeliest(choices: Sequence[str], of_choice: Sequence[float], metric: Metric) -> str:
    """Return the likeliest choice by one of the metrics ``BY_LIKELIHOOD``; of equal ones the first.

    Raises:
        DataRefused: the model's probability of a choice is not a number.
    """
    for choice, score in zip(choices, of_choice, strict=True):
        # `max` would take the first choice, or skip this one, by its place alone.
        if math.isnan(score):
            raise DataRefused(
                f"the model's probability of the choice {quote(choice)} is not a number",
                hint="look for values that are not finite in base and bundle; in float16 a base may overflow",
            )
    scores = list(of_choice)
    if metric == "likelihood-per-byte":
        scores = [score / len(text.encode()) for score, text in zip(scores, choices, strict=True)]
    return choices[scores.index(max(scores))]


def _log_probability(loaded: LoadedBundle, read: ReadPrompt, ids: Tensor) -> float:
    """Return the log-probability of ids ``[1, N]`` behind a prompt."""
    logs = [read.last]
    if ids.shape[1] > 1:
        # The last token is predicted, and never read.
        seen = ids[:, :-1]
        behind = loaded.model(
            input_ids=seen,
            attention_mask=torch.cat([read.mask, torch.ones_like(seen)], dim=1),
            # The next choice begins behind the prompt again.
            past_key_values=copy.deepcopy(read.cache),
            use_cache=True,
        )
        logs.append(torch.log_softmax(behind.logits.float(), dim=-1))
    of_tokens = torch.cat(logs, dim=1).gather(2, ids.to(read.last.device)[..., None])
    return float(of_tokens.double().sum())


def _last_only(loaded: LoadedBundle) -> dict[str, int]:
    """Return the argument that asks for the last token's logits alone, where the base takes it."""
    declared = inspect.signature(loaded.model.get_base_model().forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in declared else {}
