"""The samples of a training: their order, in which every member has the same share, and their batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..fitting.sequences import LabelledTokens, pad_sequences


def balanced_order(counts: Sequence[int], draws: int, seed: int) -> np.ndarray:
    """Return which sample is read when: int32 ``[draws, 2]``, the member's place and that of its sample.

    Each L draws have one sample of every one of the L members, in an order of their own. A member's
    samples are read in a random order, all of them before any comes again.

    Args:
        counts: how many samples each member has, at least one.
        draws: how many are read.
        seed: of all orders.
    """
    # numpy's legacy generator, whose stream is frozen: a resumed training may run under another release.
    random = np.random.RandomState(seed)
    rounds = -(-draws // len(counts))
    order = np.empty((rounds * len(counts), 2), dtype=np.int32)
    order[:, 0] = _permutations(random, len(counts), rounds)
    for member, count in enumerate(counts):
        passes = _permutations(random, count, -(-rounds // count))
        order[order[:, 0] == member, 1] = passes[:rounds]
    return order[:draws]


def _permutations(random: np.random.RandomState, count: int, passes: int) -> np.ndarray:
    """Return orders of ``count`` things one behind the other, int32."""
    # A list of ten million small arrays takes 1.6 GB.
    drawn = np.empty((passes, count), dtype=np.int32)
    for place in range(passes):
        drawn[place] = random.permutation(count)
    return drawn.reshape(-1)


def longest_first(
    order: np.ndarray, members: Sequence[Sequence[LabelledTokens]], batch_size: int
) -> np.ndarray:
    """Return an order whose samples of each step are the same, the longest first.

    Samples that are read in one pass are then alike in length, so little of it is padding.

    Args:
        order: as ``balanced_order`` returns it, of whole steps.
        members: each member's samples.
        batch_size: samples in a step.
    """
    lengths = np.array([len(sample.ids) for own in members for sample in own], dtype=np.int32)
    begins = np.cumsum([0, *map(len, members)])
    of_steps = lengths[begins[order[:, 0]] + order[:, 1]].reshape(-1, batch_size)
    places = np.argsort(-of_steps, axis=1, kind="stable")
    steps = order.reshape(-1, batch_size, 2)
    return np.take_along_axis(steps, places[..., None], axis=1).reshape(-1, 2)


class OrderedSamples(Dataset[LabelledTokens]):
    """The samples of all members in the order in which they are read.

    Args:
        members: each member's samples.
        order: as ``balanced_order`` or ``longest_first`` returns it.
    """

    def __init__(self, members: Sequence[Sequence[LabelledTokens]], order: np.ndarray) -> None:
        self._members = members
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, place: int) -> LabelledTokens:
        """Return the sample that is read at a place."""
        member, sample = map(int, self._order[place])
        return self._members[member][sample]


def collate(rows: Sequence[LabelledTokens]) -> dict[str, Tensor]:
    """Return samples as tensors: ids, mask and gate labels int64 ``[B, T]``, prompt tokens int64 ``[B]``."""
    batch = pad_sequences(rows)
    return {
        "input_ids": batch.ids,
        "attention_mask": batch.mask,
        "gate_labels": batch.labels,
        "prompt_tokens": torch.tensor([row.prompt_tokens for row in rows]),
    }
