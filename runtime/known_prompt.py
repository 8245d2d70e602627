"""The prompt of the generation that runs on this thread.

A forward pass cannot know where its prompt ends: guessed tokens may come together with it, or only a piece of
it. transformers' ``generate`` is called with the whole prompt, so it is kept here while that runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class KnownPrompt:
    """The prompts of one call of ``generate``.

    Attributes:
        model: the base model that generates.
        tokens: the prompt's length, padding and what the cache holds included.
        inputs: the arguments of a forward pass over all of it; empty if not all of it is known.
    """

    model: nn.Module
    tokens: int
    inputs: Mapping[str, Tensor]


class _Thread(threading.local):
    def __init__(self) -> None:
        self.prompts: list[KnownPrompt | None] = []


_thread = _Thread()


def known_prompt(model: nn.Module) -> KnownPrompt | None:
    """Return the prompt of the innermost generation of this thread, if ``model`` is what generates."""
    prompt = _thread.prompts[-1] if _thread.prompts else None
    return prompt if prompt is not None and prompt.model is model else None


@contextmanager
def knowing(prompt: KnownPrompt | None) -> Iterator[None]:
    """Let a prompt be that of this thread's generation within the block."""
    _thread.prompts.append(prompt)
    try:
        yield
    finally:
        _thread.prompts.pop()


def prompt_in(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> KnownPrompt | None:
    """Return the prompt in the arguments of a call of ``generate``, or None without one."""
    ids = _tensor(kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None)), 2)
    embeddings, mask = _tensor(kwargs.get("inputs_embeds"), 3), _tensor(kwargs.get("attention_mask"), 2)
    tokens = ids if embeddings is None else embeddings
    if tokens is None:
        return None
    inputs = {"input_ids" if embeddings is None else "inputs_embeds": tokens}
    if mask is None:
        return KnownPrompt(model, tokens.shape[1], inputs)
    if mask.shape[1] > tokens.shape[1]:
        # The new tokens alone, behind those of a cache.
        return KnownPrompt(model, mask.shape[1], {})
    return KnownPrompt(model, tokens.shape[1], inputs | {"attention_mask": mask})


def _tensor(value: Any, dimensions: int) -> Tensor | None:
    return value if isinstance(value, Tensor) and value.ndim == dimensions else None
