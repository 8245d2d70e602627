"""One row of what vLLM makes of an adapter, beside what ``validate --for vllm`` predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from .models import some_tokens
from .task_data import tiny_tokenizer
from .verdict_kinds import DENSE, TIED, Kind, _built, _text, base_answer
from .vllm_engine import Engine, EngineRefused

# The CPU's attention kernel takes heads of 32 and more.
_SIZES = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
LLAMA = replace(DENSE, build=_text("LlamaForCausalLM", **_SIZES))
TIED_LLAMA = replace(TIED, build=_text("LlamaForCausalLM", tie_word_embeddings=True, **_SIZES))
KINDS = {kind.name: kind for kind in (LLAMA, TIED_LLAMA)}
MAX_DIFFERENCE = 1e-3
EFFECT, BASE, OTHER, REFUSED = "as trained", "the base's output", "another output", "refused"


def prompts() -> list[list[int]]:
    """Return the sequences that adapters are compared on, whole and their first half."""
    tokens: list[list[int]] = some_tokens().tolist()
    return [row[:length] for row in tokens for length in (len(row) // 2, len(row))]


def save_served_base(kind: Kind, folder: Path) -> Path:
    """Write a base with its weights and a tokenizer, as an engine reads it."""
    _built(kind).save_pretrained(folder)
    tiny_tokenizer(eos_token="<s>").save_pretrained(folder)
    return folder


def next_scores(logits: Tensor) -> list[list[float]]:
    """Return the log probabilities of all tokens after each prompt, from logits of ``some_tokens``."""
    length = logits.shape[1]
    found: list[list[float]] = logits[:, [length // 2 - 1, length - 1]].log_softmax(-1).flatten(0, 1).tolist()
    return found


def alike(found: Sequence[Mapping[int, float]], expected: Sequence[Sequence[float]]) -> bool:
    """Return whether the likeliest tokens after each prompt have the expected log probabilities."""
    places = zip(found, expected, strict=True)
    return all(
        abs(score - scores[token]) <= MAX_DIFFERENCE for top, scores in places for token, score in top.items()
    )


def outcome(engine: Engine, kind: Kind, folder: Path, trained: Sequence[Sequence[float]]) -> tuple[str, str]:
    """Return what the engine makes of an adapter, and its reason if it refuses."""
    name = folder.name
    loaded = engine.load(name, folder)
    if loaded.status != 200:
        return REFUSED, loaded.message
    try:
        found = engine.next_tokens(name, prompts())
    except EngineRefused as error:
        return REFUSED, str(error)
    finally:
        engine.unload(name)
    if alike(found, next_scores(base_answer(kind))):
        return BASE, ""
    return (EFFECT if alike(found, trained) else OTHER), ""
