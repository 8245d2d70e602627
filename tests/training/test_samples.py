"""The order in which samples are read, and their batches."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meteora_registry.runtime.fitting.sequences import LabelledTokens, encode_samples
from meteora_registry.runtime.fitting.task_data import Sample
from meteora_registry.runtime.training.samples import OrderedSamples, balanced_order, collate, longest_first
from support.task_data import tiny_tokenizer


@given(
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    draws=st.integers(1, 60),
    seed=st.integers(0, (1 << 32) - 1),
)
def test_every_member_has_the_same_share_and_all_its_samples_before_any_again(
    counts: list[int], draws: int, seed: int
) -> None:
    order = balanced_order(counts, draws, seed)
    assert order.shape == (draws, 2)
    for start in range(0, draws - len(counts) + 1, len(counts)):
        assert sorted(order[start : start + len(counts), 0]) == list(range(len(counts)))
    for member, count in enumerate(counts):
        read = [int(sample) for own, sample in order if own == member]
        assert set(read) <= set(range(count))
        for start in range(0, len(read) - count + 1, count):
            assert len(set(read[start : start + count])) == count


def test_order_is_that_of_its_seed() -> None:
    first = balanced_order([5, 3], 40, 7)
    assert np.array_equal(first, balanced_order([5, 3], 40, 7))
    assert not np.array_equal(first, balanced_order([5, 3], 40, 8))
    # A resumed training may run under a later release, which must read the same.
    assert balanced_order([3, 2], 6, 0).tolist() == [[1, 0], [0, 2], [0, 1], [1, 1], [0, 0], [1, 0]]


def test_more_draws_begin_with_the_same_members() -> None:
    assert Counter(balanced_order([9, 2, 4], 30, 0)[:, 0].tolist()) == {0: 10, 1: 10, 2: 10}


def test_samples_of_a_step_are_read_longest_first() -> None:
    members = [[LabelledTokens((1,) * size, (0,) * size) for size in sizes] for sizes in ((2, 9), (5, 5, 1))]
    order = balanced_order([2, 3], 12, 0)
    sorted_order = longest_first(order, members, 4)
    for begin in range(0, 12, 4):
        step, of_length = order[begin : begin + 4].tolist(), sorted_order[begin : begin + 4].tolist()
        # Of equally long ones the one that was drawn first.
        assert of_length == sorted(step, key=lambda each: -len(members[each[0]][each[1]].ids))
    assert sorted_order.tolist() != order.tolist()


def test_batch_has_the_tokens_in_order_and_states_where_answers_begin() -> None:
    members = [[LabelledTokens((4, 5, 6), (0, 0, 0), 2)], [LabelledTokens((7,), (1,))]]
    dataset = OrderedSamples(members, np.array([[1, 0], [0, 0]], dtype=np.int32))
    assert len(dataset) == 2
    batch = collate([dataset[0], dataset[1]])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[7, 0, 0], [4, 5, 6]],
        "attention_mask": [[1, 0, 0], [1, 1, 1]],
        "gate_labels": [[1, -1, -1], [0, 0, 0]],
        "prompt_tokens": [0, 2],
    }


@pytest.mark.parametrize(("response", "expected"), [("w4 w5", 3), (None, 0)], ids=["answer", "text"])
def test_encoded_sample_states_the_tokens_of_its_prompt(response: str | None, expected: int) -> None:
    sample = Sample("w1 w2 w3", response, 1)
    (found,) = encode_samples([sample], tiny_tokenizer(), 0, max_tokens=64, skip_tokens=0)
    assert found.prompt_tokens == expected
