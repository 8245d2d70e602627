"""Answers in the order of the prompt's numbered list, decided from evidence that is written by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from meteora_registry.runtime.scopes.decision import Decision, Stretch
from meteora_registry.runtime.scopes.routing_rule import RoutingRule, changed_rule
from meteora_registry.runtime.scopes.segment import SegmentDecision
from meteora_registry.schemas.errors import UsageError
from meteora_registry.schemas.gate_choices import Answers
from support.lines import LINE_TEXTS, encode

MEMBERS = ("one", "two", "three")
# The letters whose evidence is for each member; any other character is as likely for each.
_FOR = {"a": 0, "b": 1, "c": 2}
PROMPT = "1. aaaa\n2. bbbb\n3. bbbb\n4. cccc\n\n"


def rule_of(answers: Answers = "in-order", *, top_k: int = 1, abstain: float | None = None) -> RoutingRule:
    return RoutingRule(
        "segment", top_k=top_k, temperature=1.0, abstain=abstain, answers=answers, line_texts=LINE_TEXTS
    )


def evidence_of(text: str, *, share: float = 0.9) -> Tensor:
    """Return log posteriors [T, L], in which a letter's member has this share."""
    found = torch.full((len(text), len(MEMBERS)), 1 / len(MEMBERS))
    for place, character in enumerate(text):
        if character in _FOR:
            found[place] = (1 - share) / 2
            found[place, _FOR[character]] = share
    return found.log()


def stretch_of(rows: list[str], *, answer: bool = False) -> Stretch:
    """Return texts as tokens, those of prompts padded on the left with an underscore for each token."""
    ids = torch.tensor([encode(row.replace("_", "z")) for row in rows])
    own = torch.tensor([[character != "_" for character in row] for row in rows])
    return Stretch(own, torch.zeros_like(own) if answer else own, has_prompt=not answer, ids=ids)


def begin(*prompts: str, rule: RoutingRule | None = None, share: float = 0.9) -> SegmentDecision:
    evidence = torch.stack([evidence_of(prompt, share=share) for prompt in prompts])
    return SegmentDecision.decide(rule or rule_of(), evidence, stretch_of([*prompts]))


def go_on(decided: SegmentDecision, *answers: str, past: int | None = None) -> SegmentDecision:
    evidence = torch.stack([evidence_of(answer) for answer in answers])
    tokens = decided.own.shape[1] if past is None else past
    return decided.advance(tokens, evidence, stretch_of([*answers], answer=True))


def served(decided: SegmentDecision, tokens: int, row: int = 0) -> str:
    """Return the digit of the most likely member of each of the last tokens, from 1."""
    return "".join(str(winner + 1) for winner in decided.winners[row, -tokens:].tolist())


def described(decided: SegmentDecision, row: int = 0) -> list[Decision]:
    return [each for each in decided.describe(MEMBERS, 0) if each.sequence == row]


def test_each_line_is_served_by_the_item_of_its_number() -> None:
    answer = "1. c\n2. a\n3. a\n4. a\n"
    decided = go_on(begin(PROMPT), answer)
    # The first number is written before any item serves.
    assert served(decided, len(answer) - 1) == "1" * 5 + "2" * 5 + "2" * 5 + "3" * 4
    by_text = go_on(begin(PROMPT, rule=rule_of("by-text")), answer)
    assert served(by_text, 4) != served(decided, 4)


def test_decisions_name_the_items_and_keep_neighbours_of_one_member_apart() -> None:
    decided = go_on(begin(PROMPT + "1."), " x\n2. x\n3. x\n")
    end = len(PROMPT)
    items = [(each.item, each.start, each.end, each.members) for each in described(decided) if each.item]
    assert items == [
        (1, end, end + 6, ("one",)),
        (2, end + 6, end + 11, ("two",)),
        (3, end + 11, end + 15, ("two",)),
    ]
    # Of four letters, a blank and a line break, the latter two as likely for each.
    expected = torch.tensor([0.9, 0.05, 0.05]).log() * 4 + math.log(1 / 3) * 2
    assert described(decided)[-1].confidence == pytest.approx(float((expected / 6).exp().amax()))
    assert described(decided)[-1].evidence == pytest.approx((expected / 6).softmax(dim=0)[[1, 0, 2]].tolist())


def test_prompt_that_ends_in_a_number_is_served_by_its_item_from_there() -> None:
    begun = begin(PROMPT + "2.")
    assert served(begun, 2) == "22"
    assert served(go_on(begun, "\naaaa"), 5) == "22222"


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("aaaa\n\nbbbb\n\n", "1. b\n2. a"),
        ("1. aaaa\n2. aaaa\n", "1. b\n2. b"),
        ("1. aaaa\nbbbb\n", "1. b\n2. a"),
        (PROMPT, "bbbbbb\naaaaaa"),
        (PROMPT, "5. bbbbbb"),
    ],
    ids=["paragraphs", "one-member", "one-item", "no-numbers", "no-such-item"],
)
def test_other_answers_are_decided_by_their_text_to_the_bit(prompt: str, answer: str) -> None:
    found = go_on(begin(prompt), answer)
    expected = go_on(begin(prompt, rule=rule_of("by-text")), answer)
    assert torch.equal(found.probability, expected.probability)
    assert torch.equal(found.confidence, expected.confidence)
    assert found.describe(MEMBERS, 0) == expected.describe(MEMBERS, 0)


def test_text_behind_a_number_without_an_item_is_decided_from_there() -> None:
    decided = go_on(begin(PROMPT), "1. bbbbbb\n9. bbbbbb")
    numbers = [(each.item, each.members) for each in described(decided)][-3:]
    assert numbers == [(1, ("one",)), (None, ("one",)), (None, ("two",))]


def test_restated_answers_have_their_members_too() -> None:
    answer = "1. aaaa\n2. bbbb\n3. bbbb\n4. cccc\n"
    winners = go_on(begin(PROMPT), answer).winners[0, -len(answer) :].tolist()
    letters = [place for place, character in enumerate(answer) if character in _FOR]
    assert [winners[place] for place in letters] == [_FOR[answer[place]] for place in letters]


def test_unsure_item_leaves_its_answer_to_the_base() -> None:
    prompt = "1. aaaaaaaa\n2. b.......\n"
    decided = go_on(begin(prompt, rule=rule_of(abstain=0.5)), "1. x\n2. x\n")
    found = {each.item: each.members for each in described(decided) if each.item}
    assert found == {1: ("one",), 2: ()}


def test_weights_of_an_item_are_those_of_scope_prompt() -> None:
    decided = go_on(begin(PROMPT, rule=rule_of(top_k=2)), "1. x")
    item = decided.order
    assert item is not None
    routing = decided.rule.route(item.items[0, 0], decided.confidence[0, -1])
    logits = decided.probability[0, -1].log()
    assert torch.allclose(decided.rule.route(logits, decided.confidence[0, -1]).weights, routing.weights)


@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_answer_in_pieces_is_the_answer_as_a_whole(size: int) -> None:
    answer = "1. ab\n2.5 c\n12:30\n\nz 2: aaaaaaaaaaaaaaaaaaaaaa\n  (3) c\n1. 2. 3.\n9. c\n4)"
    whole = go_on(begin(PROMPT + "4."), answer)
    pieces = begin(PROMPT + "4.")
    for start in range(0, len(answer), size):
        pieces = go_on(pieces, answer[start : start + size])
    assert whole.order is not None
    assert pieces.order is not None
    assert torch.equal(pieces.order.numbers, whole.order.numbers)
    assert torch.allclose(pieces.probability, whole.probability, atol=1e-6)
    # With labels, or without a cache, prompt and answer come together.
    together = stretch_of([PROMPT + "4." + answer])
    prompt = together.prompt.clone()
    prompt[:, len(PROMPT) + 2 :] = False
    at_once = SegmentDecision.decide(
        rule_of(), evidence_of(PROMPT + "4." + answer)[None], replace(together, prompt=prompt)
    )
    assert at_once.order is not None
    assert torch.equal(at_once.order.numbers, whole.order.numbers)
    assert torch.allclose(at_once.probability, whole.probability, atol=1e-6)


def test_tokens_that_are_taken_back_leave_nothing() -> None:
    begun = go_on(begin(PROMPT), "1. x\n")
    guessed = go_on(begun, "2. a\n3.")
    # Of the guess "2" and "." are kept.
    again = go_on(guessed, "5 a\n4. x", past=len(PROMPT) + 7)
    expected = go_on(begun, "2.5 a\n4. x")
    assert torch.equal(again.probability, expected.probability)
    assert again.order is not None
    assert expected.order is not None
    assert torch.equal(again.order.numbers, expected.order.numbers)


def test_rows_of_a_batch_are_decided_as_alone_and_follow_a_beam_search() -> None:
    prompts, answers = [PROMPT, "1. bbbb\n2. aaaa\n", "aaaa\n"], ["1. x\n2. x", "2. x\n1. x", "1. bbbbbb"]
    width = max(map(len, prompts))
    batch = begin(*(prompt.rjust(width, "_") for prompt in prompts))
    order = [2, 0, 1, 0]
    moved = go_on(batch.select(torch.tensor(order)), *(answers[row] for row in order))
    for place, row in enumerate(order):
        alone = go_on(begin(prompts[row]), answers[row])
        tokens = len(prompts[row]) + len(answers[row])
        assert torch.allclose(moved.probability[place, -tokens:], alone.probability[0], atol=1e-6)
        assert [(each.item, each.members) for each in described(moved, place)] == [
            (each.item, each.members) for each in described(alone)
        ]


def test_tokens_without_ids_are_decided_by_their_text() -> None:
    prompt = stretch_of([PROMPT])
    without = SegmentDecision.decide(rule_of(), evidence_of(PROMPT)[None], replace(prompt, ids=None))
    assert without.order is None
    answer = replace(stretch_of(["1. x"], answer=True), ids=None)
    unknown = begin(PROMPT).advance(len(PROMPT), evidence_of("1. x")[None], answer)
    assert unknown.order is not None
    assert not unknown.order.is_held.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": "sorted"}, "`answers` is `sorted`, expected one of `by-text`, `in-order`"),
        (
            {"answers": "in-order", "scope": "prompt"},
            "answers in order go with the scope `segment`, found `prompt`",
        ),
        (
            {"answers": "in-order"},
            "the bundle does not state which tokens number a line, so its answers cannot be in order",
        ),
    ],
    ids=["name", "scope", "bundle"],
)
def test_order_that_a_rule_cannot_have_is_refused(changes: dict[str, str], message: str) -> None:
    rule = replace(rule_of("by-text"), line_texts=None)
    with pytest.raises(UsageError) as caught:
        changed_rule(rule, changes, members=3)
    assert str(caught.value) == message


def test_scope_that_does_not_follow_answers_drops_their_order() -> None:
    assert changed_rule(rule_of(), {"scope": "prompt"}, members=3).lines is None
    assert changed_rule(rule_of(), {"top_k": 2}, members=3).lines is LINE_TEXTS
    assert changed_rule(rule_of("by-text"), {"answers": "in-order"}, members=3).lines is LINE_TEXTS
