"""The probability of each token of a prompt, by which evaluations compare answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..runtime.answer_text import AnswerText
from ..runtime.loaded_bundle import LoadedBundle
from .rows import Row

# Of one pass over [T, V] scores, in float32.
_TOKENS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class TokenScores:
    """The tokens of a prompt, and the one behind it if it was asked for, with their log probabilities.

    Attributes:
        tokens: the text of each.
        logprobs: of each behind those before it; None for the first.
        top: the likeliest tokens at each place, by text; None for the first.
    """

    tokens: list[str]
    logprobs: list[float | None]
    top: list[dict[str, float] | None]

    @property
    def field(self) -> dict[str, Any]:
        """The value of the field `logprobs`."""
        offsets = [0]
        for token in self.tokens[:-1]:
            offsets.append(offsets[-1] + len(token))
        return {
            "tokens": self.tokens,
            "token_logprobs": self.logprobs,
            "top_logprobs": self.top,
            "text_offset": offsets,
        }


def score(loaded: LoadedBundle, row: Row) -> TokenScores:
    """Return the scores of a row's tokens, from one pass over them."""
    ids = torch.tensor([[*row.ids]], device=loaded.model.device)
    with torch.no_grad():
        logits = loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    following = [*row.ids[1:]]
    if row.max_new_tokens:
        following.append(int(logits[-1].argmax()))
    scored = [
        each
        for first in range(0, len(following), _TOKENS_AT_ONCE)
        for each in _score_some(logits, following, first, row.top_logprobs or 1)
    ]
    return TokenScores(
        tokens=_texts(loaded, [row.ids[0], *following]),
        logprobs=[None, *(own for own, _ in scored)],
        top=[None, *({_texts(loaded, [token])[0]: value for token, value in top} for _, top in scored)],
    )


def _texts(loaded: LoadedBundle, ids: Sequence[int]) -> list[str]:
    """Return the text of each token, so that they join to the text of all."""
    text = AnswerText(loaded.tokenizer)
    found = [text.add(token) for token in ids]
    found[-1] += text.end()
    return found


def _score_some(
    logits: Tensor, following: list[int], first: int, count: int
) -> list[tuple[float, list[tuple[int, float]]]]:
    """Return the log probability of each of some tokens, and those of the likeliest in its place."""
    tokens = following[first : first + _TOKENS_AT_ONCE]
    logprobs = logits[first : first + len(tokens)].float().log_softmax(dim=-1).cpu()
    own = logprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
    values, places = logprobs.topk(count, dim=-1)
    top = [
        [*zip(each, best, strict=True)] for each, best in zip(places.tolist(), values.tolist(), strict=True)
    ]
    return [*zip(own, top, strict=True)]
