"""Padded batches made from samples, with every token that counts labelled with its member."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...schemas.bundle import TemplateTokens
from .task_data import Sample

# The label of a token that does not count: padding, and those left out at the beginning of a sample.
NO_MEMBER = -1
MAX_BATCH_TOKENS = 2048
# One sample of so many is held out where there are few.
_HELD_OUT_OF = 5
_MAX_HELD_OUT = 32


@dataclass(frozen=True, slots=True)
class LabelledTokens:
    """One sequence: token ids, and for each the place of its member or ``NO_MEMBER``.

    ``prompt_tokens`` at its beginning are those of a prompt that an answer follows; 0 for a plain text.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    prompt_tokens: int = 0

    def __add__(self, other: LabelledTokens) -> LabelledTokens:
        return LabelledTokens(self.ids + other.ids, self.labels + other.labels)

    def relabelled(self, label: int) -> LabelledTokens:
        """Return the same tokens with another label for those that count."""
        labels = tuple(each if each == NO_MEMBER else label for each in self.labels)
        return LabelledTokens(self.ids, labels)


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences padded on the right: ids, mask and labels, int64 ``[B, T]``."""

    ids: Tensor
    mask: Tensor
    labels: Tensor


def choose_samples(samples: Sequence[Sample], limit: int) -> tuple[Sample, ...]:
    """Choose at most ``limit`` of the samples, spread evenly over the file, in its order."""
    count = min(limit, len(samples))
    return tuple(samples[place * len(samples) // count] for place in range(count))


def hold_out(samples: Sequence[Sample], limit: int) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Divide samples into those that a fit may read and those held out from it, in their order.

    All that a fit of ``limit`` samples leaves over, and at least a fifth, are held out, at most 32.
    """
    count = min(_MAX_HELD_OUT, max(len(samples) - limit, len(samples) // _HELD_OUT_OF))
    held = {sample.line for sample in choose_samples(samples, count)} if count else set()
    return (
        tuple(sample for sample in samples if sample.line not in held),
        tuple(sample for sample in samples if sample.line in held),
    )


def encode_samples(
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    label: int,
    *,
    max_tokens: int,
    skip_tokens: int,
    template: TemplateTokens | None = None,
) -> list[LabelledTokens]:
    """Encode prompt and response of each sample as tokens of one member, cut to ``max_tokens``.

    Neither the first ``skip_tokens`` nor those of the chat template around the question count.
    """
    sequences = []
    for sample in samples:
        ids = tokenizer(sample.prompt, verbose=False)["input_ids"]
        start, end = (0, len(ids)) if template is None else template.span_of(ids)
        outside = {*range(start), *range(end, len(ids)), *range(skip_tokens)}
        prompt_tokens = 0
        if sample.response is not None:
            prompt_tokens = len(ids)
            ids = ids + tokenizer(sample.response, add_special_tokens=False, verbose=False)["input_ids"]
        ids = ids[:max_tokens]
        labels = tuple(NO_MEMBER if place in outside else label for place in range(len(ids)))
        sequences.append(LabelledTokens(tuple(ids), labels, prompt_tokens))
    return sequences


def concatenate(members: Sequence[Sequence[LabelledTokens]], *, max_tokens: int) -> list[LabelledTokens]:
    """Join one sample of every member to a sequence, so that every member is also read behind the others.

    The order of the members goes round by one from sequence to sequence. There are as many as the
    shortest list has samples; the part beyond ``max_tokens`` is cut off.
    """
    joined = []
    for place in range(min(len(own) for own in members)):
        turn = place % len(members)
        parts = [own[place] for own in (*members[turn:], *members[:turn])]
        whole = sum(parts[1:], start=parts[0])
        joined.append(LabelledTokens(whole.ids[:max_tokens], whole.labels[:max_tokens]))
    return joined


def count_tokens(sequences: Sequence[LabelledTokens]) -> Mapping[int, int]:
    """Count the labelled tokens of each member."""
    counts = Counter(label for sequence in sequences for label in sequence.labels)
    del counts[NO_MEMBER]
    return counts


def make_batches(
    sequences: Sequence[LabelledTokens], *, max_batch_tokens: int = MAX_BATCH_TOKENS
) -> list[Batch]:
    """Batch the sequences by length: at most ``max_batch_tokens`` with padding each, or one sequence."""
    ordered = sorted((each for each in sequences if each.ids), key=lambda each: len(each.ids))
    return [pad_sequences(rows) for rows in _rows_of_batches(ordered, max_batch_tokens)]


def _rows_of_batches(
    ordered: Sequence[LabelledTokens], max_batch_tokens: int
) -> Iterator[list[LabelledTokens]]:
    rows: list[LabelledTokens] = []
    for sequence in ordered:
        if rows and (len(rows) + 1) * len(sequence.ids) > max_batch_tokens:
            yield rows
            rows = []
        rows.append(sequence)
    if rows:
        yield rows


def pad_sequences(rows: Sequence[LabelledTokens]) -> Batch:
    """Return sequences as one batch, padded on the right."""
    shape = len(rows), max(len(row.ids) for row in rows)
    ids, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, NO_MEMBER, dtype=torch.int64)
    for place, row in enumerate(rows):
        length = len(row.ids)
        ids[place, :length] = torch.tensor(row.ids)
        mask[place, :length] = 1
        labels[place, :length] = torch.tensor(row.labels)
    return Batch(ids, mask, labels)
