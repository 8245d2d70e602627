"""The score of greedy decoding, from one pass over prompt and answer together.

Greedy decoding writes the right answer if and only if every token of it is the most likely one behind the
right tokens before it; so one pass over the whole text shows what token-by-token generation would give,
for a fraction of its cost. The answer's tokens are passed as labels, by which the scopes that decide ahead
know where the request ends. (Segments of a composite are therefore judged behind right ones.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from meteora_registry.runtime import RoutingRecord

from .prompts import given_pieces, pieces_of
from .tasks import TASK_NAMES, Item

NOT_LEARNED = -100
MAX_BATCH_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class EncodedText:
    """The tokens of a whole text; for each the item it belongs to, and whether the model has to write it."""

    items: tuple[Item, ...]
    ids: tuple[int, ...]
    places: tuple[int, ...]
    written: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Texts padded on the left: ids, mask, labels, places and the member each token belongs to, [B, T]."""

    texts: tuple[EncodedText, ...]
    ids: Tensor
    mask: Tensor
    labels: Tensor
    places: Tensor
    members: Tensor


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one text.

    Attributes:
        right: for each item whether all that the model had to write for it was right.
        decided: the member of the request, None without a decision ahead; "" where no member served it.
        confidence: of that decision.
        served: the part of the routed tokens, over all modules, whose first choice was their own member.
    """

    right: tuple[bool, ...]
    decided: str | None = None
    confidence: float | None = None
    served: float | None = None


def encode_text(items: Sequence[Item], tokenizer: PreTrainedTokenizerBase) -> EncodedText:
    """Return the tokens of the text of some items, answers included."""
    ids: list[int] = []
    places: list[int] = []
    written: list[bool] = []
    given = given_pieces(items)
    for index, piece in enumerate(pieces_of(items)):
        tokens = tokenizer(piece.text, add_special_tokens=False).input_ids
        ids += tokens
        places += [piece.place] * len(tokens)
        written += [index >= given] * len(tokens)
    return EncodedText(tuple(items), tuple(ids), tuple(places), tuple(written))


def batches_of(texts: Sequence[EncodedText]) -> Iterator[tuple[list[int], TextBatch]]:
    """Yield batches of texts of similar length, with their places among ``texts``."""
    order = sorted(range(len(texts)), key=lambda place: len(texts[place].ids))
    batch: list[int] = []
    for place in order:
        if batch and (len(batch) + 1) * len(texts[place].ids) > MAX_BATCH_TOKENS:
            yield batch, pad_left([texts[each] for each in batch])
            batch = []
        batch.append(place)
    if batch:
        yield batch, pad_left([texts[each] for each in batch])


def pad_left(texts: Sequence[EncodedText]) -> TextBatch:
    """Return the texts as one batch."""
    shape = len(texts), max(len(text.ids) for text in texts)
    ids, mask, places, members = (torch.zeros(shape, dtype=torch.int64) for _ in range(4))
    labels = torch.full(shape, NOT_LEARNED)
    for row, text in enumerate(texts):
        own = slice(shape[1] - len(text.ids), None)
        ids[row, own] = torch.tensor(text.ids)
        mask[row, own] = 1
        places[row, own] = torch.tensor(text.places)
        members[row, own] = torch.tensor([TASK_NAMES.index(text.items[place].task) for place in text.places])
        labels[row, own] = torch.where(torch.tensor(text.written), ids[row, own], NOT_LEARNED)
    return TextBatch(tuple(texts), ids, mask, labels, places, members)


def score_texts(
    model: nn.Module,
    texts: Sequence[EncodedText],
    routed: Callable[[TextBatch], AbstractContextManager[RoutingRecord | None]],
) -> list[Outcome]:
    """Return what becomes of each text.

    Args:
        model: the model, with or without a bundle.
        texts: what to write.
        routed: opens the block in which a batch is run; it may give a record of the routing.
    """
    outcomes: dict[int, Outcome] = {}
    for places, batch in batches_of(texts):
        with torch.no_grad(), routed(batch) as record:
            found = judge(batch, predict(model, batch), record)
        outcomes |= dict(zip(places, found, strict=True))
    return [outcomes[place] for place in range(len(texts))]


def predict(model: nn.Module, batch: TextBatch) -> Tensor:
    """Return the most likely next tokens [B, T - 1]; -1 where no row has anything to write."""
    first = int((batch.labels != NOT_LEARNED).any(0).nonzero()[0])
    kept = batch.ids.shape[1] - first + 1
    logits = model(
        input_ids=batch.ids, attention_mask=batch.mask, labels=batch.labels, logits_to_keep=kept
    ).logits
    return nn.functional.pad(logits[:, :-1].argmax(-1), (first - 1, 0), value=-1)


def judge(batch: TextBatch, predicted: Tensor, record: RoutingRecord | None) -> list[Outcome]:
    """Return the outcomes of a batch from the most likely next tokens [B, T - 1]."""
    labels = batch.labels[:, 1:]
    wrong = (labels != NOT_LEARNED) & (predicted != labels)
    served = None if record is None or not record.modules else served_rightly(batch, record)
    decisions = {} if record is None else {each.sequence: each for each in record.decisions}
    outcomes = []
    for row, text in enumerate(batch.texts):
        missed = set(batch.places[row, 1:][wrong[row]].tolist())
        decision = decisions.get(row) if len(text.items) == 1 else None
        outcomes.append(
            Outcome(
                right=tuple(place not in missed for place in range(len(text.items))),
                decided=None if decision is None else "".join(decision.members[:1]),
                confidence=None if decision is None else decision.confidence,
                served=None if served is None else served[row].item(),
            )
        )
    return outcomes


def served_rightly(batch: TextBatch, record: RoutingRecord) -> Tensor:
    """Return for each row the part of its tokens, over all modules, whose first choice was their member."""
    # The record counts members in the bundle's order.
    order = torch.tensor([record.members.index(name) for name in TASK_NAMES])
    own = batch.mask.bool()
    wanted = order[batch.members]
    total = torch.zeros(len(batch.texts))
    for routing in record.modules.values():
        first = routing.selection.gather(-1, routing.weights.argmax(-1, keepdim=True)).squeeze(-1)
        total += ((first == wanted) & own).sum(1) / own.sum(1)
    return total / len(record.modules)
