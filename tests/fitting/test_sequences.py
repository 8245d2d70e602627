"""The tokens that count for each member, and inputs and sequences in bounded portions."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from meteora_registry.runtime.fitting.inputs import ModuleInput
from meteora_registry.runtime.fitting.moments import split_inputs
from meteora_registry.runtime.fitting.sequences import (
    LabelledTokens,
    choose_samples,
    concatenate,
    count_tokens,
    encode_samples,
    make_batches,
)
from meteora_registry.runtime.fitting.task_data import Sample
from support.examples import examples
from support.task_data import tiny_tokenizer


def sequence(label: int, length: int) -> LabelledTokens:
    return LabelledTokens(tuple(range(1, length + 1)), (label,) * length)


@examples(40)
@given(st.integers(1, 200), st.integers(1, 64))
def test_samples_are_spread_over_the_file_in_its_order(available: int, limit: int) -> None:
    samples = [Sample("w1", None, line) for line in range(available)]
    lines = [each.line for each in choose_samples(samples, limit)]
    assert len(lines) == min(available, limit)
    steps = {second - first for first, second in pairwise(lines)}
    assert lines[0] == 0
    assert all(step >= 1 for step in steps)
    assert not steps or max(steps) - min(steps) <= 1
    assert lines[-1] + max(steps, default=available) + 1 >= available


def test_prompt_and_response_are_tokens_of_the_member_but_for_the_first() -> None:
    tokenizer = tiny_tokenizer()
    samples = [Sample("w1 w2", "w3 w4", 1), Sample("w5", None, 2)]
    found = encode_samples(samples, tokenizer, 3, max_tokens=3, skip_tokens=2)
    words = [tokenizer.convert_ids_to_tokens(list(each.ids)) for each in found]
    assert words == [["w1", "w2", "w3"], ["w5"]]
    assert [each.labels for each in found] == [(-1, -1, 3), (-1,)]
    assert dict(count_tokens(found)) == {3: 1}


def test_concatenations_have_one_sample_of_every_member_and_turn_round() -> None:
    members = [[sequence(label, 2) for _ in range(3)] for label in range(3)]
    found = concatenate(members, max_tokens=5)
    assert [each.labels for each in found] == [(0, 0, 1, 1, 2), (1, 1, 2, 2, 0), (2, 2, 0, 0, 1)]
    assert all(len(each.ids) == 5 for each in found)


@examples(40)
@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 100))
def test_batches_hold_every_token_once_within_their_bound(lengths: list[int], bound: int) -> None:
    sequences = [sequence(label, length) for label, length in enumerate(lengths)]
    batches = make_batches(sequences, max_batch_tokens=bound)
    assert all(batch.ids.numel() <= bound or len(batch.ids) == 1 for batch in batches)
    counted = torch.cat([batch.labels.flatten() for batch in batches]) if batches else torch.empty(0)
    for label, length in enumerate(lengths):
        assert int((counted == label).sum()) == length
    for batch in batches:
        assert torch.equal(batch.mask, (batch.labels >= 0).long())
        assert torch.equal(batch.ids, torch.cumsum(batch.mask, dim=1) * batch.mask)


@examples(40)
@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 5000))
def test_groups_of_inputs_keep_the_bound_or_hold_one(features: list[int], bound: int) -> None:
    inputs = [ModuleInput((f"m{place}",), size) for place, size in enumerate(features)]
    groups = list(split_inputs(inputs, bound))
    assert [each for group in groups for each in group] == inputs
    sizes = [sum(4 * each.features**2 for each in group) for group in groups]
    assert all(size <= bound or len(group) == 1 for size, group in zip(sizes, groups, strict=True))
    # No two neighbours would have gone together.
    assert all(
        size + 4 * following[0].features ** 2 > bound
        for size, following in zip(sizes, groups[1:], strict=False)
    )
