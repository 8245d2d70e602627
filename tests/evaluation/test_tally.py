"""Routing accuracy against records made by hand."""

from __future__ import annotations

import pytest
import torch

from meteora_registry.kernels.routing import Routing
from meteora_registry.runtime.evaluation.tally import ReadTokens, RoutingTally, count_routing, sum_counts
from meteora_registry.runtime.scopes.decision import Decision
from meteora_registry.schemas.evaluation import PositionAccuracy
from meteora_registry.schemas.evaluation_run import MAX_POSITIONS

MEMBERS = ("one", "two")
Q, V = "model.layers.0.q", "model.layers.0.v"
DEEP = "model.layers.10.q"


def route(*rows: list[int], second: float = 0.0) -> Routing:
    """Return the first slots as given; the second has the other member with a weight of ``second``."""
    first = torch.tensor(rows)
    selection = torch.stack([first, torch.where(first < 0, -1, 1 - first)], dim=-1)
    weights = torch.tensor([1 - second, second]).expand(selection.shape)
    return Routing(selection, weights * (selection >= 0))


def read(prompt: list[list[int]], answer: list[list[int]]) -> ReadTokens:
    return ReadTokens(torch.tensor(prompt).bool(), torch.tensor(answer).bool())


@pytest.fixture
def tally() -> RoutingTally:
    """Task one: two rows, the second with a padded prompt and an answer that ends early."""
    tally = RoutingTally(MEMBERS)
    tokens = read([[1, 1, 1], [0, 1, 1]], [[1, 1], [1, 0]])
    modules = {
        DEEP: route([0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
        Q: route([0, 1, 0, 0, 0], [0, 0, 1, 0, 0], second=0.25),
        V: route([1, 1, 1, 1, 1], [0, 1, 1, -1, 0]),
    }
    tally.add("one", count_routing(MEMBERS, "one", modules, tokens))
    return tally


def test_modules_and_layers_count_the_tokens_that_were_read(tally: RoutingTally) -> None:
    result = tally.result()
    assert result.modules == {DEEP: 1.0, Q: 6 / 8, V: 0.0}
    assert list(result.layers.items()) == [("model.layers.0", 0.375), ("model.layers.10", 1.0)]
    assert result.accuracy == pytest.approx((1 + 0.75) / 3, abs=1e-6)


def test_places_are_counted_from_the_beginning_of_each_sequence(tally: RoutingTally) -> None:
    assert tally.result().positions == (
        PositionAccuracy(answer=False, position=0, tokens=2, accuracy=round(4 / 6, 6)),
        PositionAccuracy(answer=False, position=1, tokens=2, accuracy=round(2 / 6, 6)),
        PositionAccuracy(answer=False, position=2, tokens=1, accuracy=round(2 / 3, 6)),
        PositionAccuracy(answer=True, position=0, tokens=2, accuracy=round(4 / 6, 6)),
        PositionAccuracy(answer=True, position=1, tokens=1, accuracy=round(2 / 3, 6)),
    )


def test_shares_sum_the_weights_and_what_nobody_took(tally: RoutingTally) -> None:
    # Of 24 weights: all 8 of the deep module, 6 * 0.75 + 2 * 0.25 of q, none of v; v abstained once.
    one = (8 + 5) / 24
    assert tally.result().shares == {"one": pytest.approx((one, 1 - one - 1 / 24, 1 / 24), abs=1e-6)}


def test_every_task_weighs_the_same_in_a_module() -> None:
    tally = RoutingTally(MEMBERS)
    tally.add("one", count_routing(MEMBERS, "one", {Q: route([0, 0, 0])}, read([[1, 1, 1]], [[]])))
    tally.add("two", count_routing(MEMBERS, "two", {Q: route([0])}, read([[1]], [[]])))
    result = tally.result()
    assert result.modules == {Q: 0.5}
    assert result.shares == {"one": (1.0, 0.0, 0.0), "two": (1.0, 0.0, 0.0)}


def test_places_beyond_the_last_are_counted_in_the_modules_alone() -> None:
    length = MAX_POSITIONS + 2
    tally = RoutingTally(MEMBERS)
    modules = {Q: route([1] * (length - 1) + [0])}
    tally.add("one", count_routing(MEMBERS, "one", modules, read([[1] * length], [[]])))
    result = tally.result()
    assert len(result.positions) == MAX_POSITIONS
    assert {position.accuracy for position in result.positions} == {0.0}
    assert result.accuracy == pytest.approx(1 / length, abs=1e-6)


def test_prompts_left_to_the_base_are_counted_with_their_confidence() -> None:
    tally, tokens = RoutingTally(MEMBERS), read([[1], [1], [1]], [[], [], []])
    decisions = [
        Decision(0, 0, 1, ("one",), (1.0,), 0.9),
        Decision(1, 0, 1, (), (), 0.02),
        # Of a prompt of two segments one is served, and the higher confidence counts.
        Decision(2, 0, 1, (), (), 0.1),
        Decision(2, 1, 2, ("two",), (1.0,), 0.5),
    ]
    tally.add("one", count_routing(MEMBERS, "one", {Q: route([0], [0], [0])}, tokens, decisions))
    result = tally.result()
    assert (result.left, result.confidence) == (1, pytest.approx((0.26, 0.5, 0.7)))


def test_tally_by_token_has_no_decisions(tally: RoutingTally) -> None:
    assert (tally.result().left, tally.result().confidence) == (None, None)
    assert "confidence" not in tally.result().model_dump()


def test_sum_of_two_batches_counts_as_both() -> None:
    batches = [
        count_routing(MEMBERS, "one", {Q: route([0, 1, 0]), V: route([0, 0, 1])}, read([[1, 1, 1]], [[]])),
        count_routing(
            MEMBERS,
            "one",
            {Q: route([0, 0]), V: route([1, 1])},
            read([[1, 0]], [[]]),
            [Decision(0, 0, 1, (), (), 0.25)],
        ),
    ]
    apart, together = RoutingTally(MEMBERS), RoutingTally(MEMBERS)
    for batch in batches:
        apart.add("one", batch)
    together.add("one", sum_counts(batches))
    assert together.result() == apart.result()
    assert together.result().left == 1
