"""Following a change of task inside one sequence: the chain by itself, and the decisions it leads to."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from meteora_registry.runtime import force_adapter, route_as, routing
from meteora_registry.runtime.scopes.segment import SWITCH_PROBABILITY, filter_chain, smooth_chain
from meteora_registry.schemas.errors import UsageError
from support import models
from support.bundles import write_bundle
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT, make_llama_adapters, tiny_llama
from support.routed_reference import PlainBundle, base_evidence
from support.scopes import loaded

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]

TOKENS, MEMBERS = 6, 3


def probability_of_paths(start: Tensor, likelihood: Tensor, prior: Tensor, until: int) -> Tensor:
    """Return P(member of token t | the first ``until`` tokens), from the sum over every path."""
    first, moves, seen = start.tolist(), prior.tolist(), likelihood.tolist()
    found = [[0.0] * MEMBERS for _ in range(TOKENS)]
    for path in itertools.product(range(MEMBERS), repeat=TOKENS + 1):
        weight = first[path[0]]
        for token, (before, member) in enumerate(itertools.pairwise(path)):
            weight *= (1 - SWITCH_PROBABILITY) * (before == member) + SWITCH_PROBABILITY * moves[member]
            weight *= seen[token][member] if token < until else 1.0
        for token, member in enumerate(path[1:]):
            found[token][member] += weight
    sums = torch.tensor(found, dtype=torch.float64)
    return sums / sums.sum(dim=-1, keepdim=True)


def test_chain_is_the_sum_over_all_paths() -> None:
    generator = torch.Generator().manual_seed(0)
    likelihood = torch.rand(1, TOKENS, MEMBERS, generator=generator) ** 4
    start, prior = torch.tensor([[0.2, 0.5, 0.3]]), torch.tensor([[0.6, 0.3, 0.1]])
    every = torch.ones(1, TOKENS, dtype=torch.bool)
    filtered = filter_chain(start, likelihood, every, prior)
    smoothed = smooth_chain(filtered, likelihood, every, prior)
    for token in range(TOKENS):
        expected = probability_of_paths(start[0], likelihood[0], prior[0], token + 1)
        assert torch.allclose(filtered[0, token].double(), expected[token], atol=1e-6)
    expected = probability_of_paths(start[0], likelihood[0], prior[0], TOKENS)
    assert torch.allclose(smoothed[0].double(), expected, atol=1e-6)


def test_inactive_tokens_change_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    likelihood = torch.rand(1, TOKENS, MEMBERS, generator=generator)
    uniform = torch.full((1, MEMBERS), 1 / MEMBERS)
    active = torch.tensor([[False, False, True, True, False, True]])
    filtered = filter_chain(uniform, likelihood, active, uniform)
    smoothed = smooth_chain(filtered, likelihood, active, uniform)
    kept = likelihood[:, active[0]]
    every = torch.ones(1, 3, dtype=torch.bool)
    alone = filter_chain(uniform, kept, every, uniform)
    assert torch.allclose(filtered[:, active[0]], alone)
    assert torch.allclose(smoothed[:, active[0]], smooth_chain(alone, kept, every, uniform))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segments")
    return write_bundle(folder / "bundle", make_llama_adapters(folder), top_k=1, scope="segment")


@pytest.fixture(scope="module")
def two_tasks(bundle: Path) -> tuple[list[int], list[int], str, str]:
    """Two stretches of text and the members that they call for when one follows the other."""
    plain, base = PlainBundle(bundle), tiny_llama()
    for first, second in itertools.product(range(1, 20), range(20, 40)):
        evidence = base_evidence(base, plain, [first] * 8 + [second] * 8)
        one, two = evidence[:8].mean(dim=0), evidence[8:].mean(dim=0)
        if one.argmax() != two.argmax() and min(float(e.topk(2).values.diff().abs()) for e in (one, two)) > 1:
            return [first] * 8, [second] * 8, plain.members[one.argmax()], plain.members[two.argmax()]
    pytest.fail("no two tokens call for different members, so nothing can be shown")


def logits_of(model: nn.Module, tokens: list[int], **inputs: object) -> Tensor:
    return models.logits_of(model, torch.tensor([tokens]), **inputs)


def test_segments_of_a_prompt_take_their_members_from_the_first_token(
    bundle: Path, two_tasks: tuple[list[int], list[int], str, str]
) -> None:
    first, second, one, two = two_tasks
    model = loaded(bundle)
    with routing(model) as record:
        logits_of(model, first + second)
    assert [(d.start, d.end, d.members) for d in record.decisions] == [(0, 8, (one,)), (8, 16, (two,))]
    chosen = record.modules["model.layers.1.mlp.up_proj"].selection[0, :, 0].tolist()
    members = PlainBundle(bundle).members
    assert [members[index] for index in chosen] == [one] * 8 + [two] * 8


def test_answer_follows_a_change_of_task(
    bundle: Path, two_tasks: tuple[list[int], list[int], str, str]
) -> None:
    first, second, one, two = two_tasks
    model = loaded(bundle)
    with routing(model) as record, torch.no_grad():
        cache = model(torch.tensor([first + second]), use_cache=True).past_key_values
        for token in first:
            model(torch.tensor([[token]]), past_key_values=cache)
    assert [decision.members for decision in record.decisions] == [(one,), (two,), (one,)]
    switched = record.decisions[2]
    assert switched.end == 24
    # A few tokens are enough, and one is not always.
    assert 16 <= switched.start <= 20


def test_answer_to_one_task_keeps_its_member(
    bundle: Path, two_tasks: tuple[list[int], list[int], str, str]
) -> None:
    first, _, one, _ = two_tasks
    model = loaded(bundle)
    with force_adapter(model, one):
        expected = logits_of(model, first)
    assert torch.allclose(logits_of(model, first), expected, atol=1e-6)


def test_cropped_cache_goes_back_to_what_was_decided_there(
    bundle: Path, two_tasks: tuple[list[int], list[int], str, str]
) -> None:
    first, second, *_ = two_tasks
    model = loaded(bundle)
    with torch.no_grad():
        straight = model(torch.tensor([first]), use_cache=True).past_key_values
        expected = logits_of(model, second[:3], past_key_values=straight)
        cache = model(torch.tensor([first]), use_cache=True).past_key_values
        logits_of(model, [5, 6, 7, 9], past_key_values=cache)
    cache.crop(-4)
    assert torch.allclose(logits_of(model, second[:3], past_key_values=cache), expected, atol=1e-6)


def test_segment_that_went_on_without_the_base_is_refused(bundle: Path) -> None:
    model = loaded(bundle)
    with torch.no_grad():
        cache = model(torch.tensor([[1, 2, 3]]), use_cache=True).past_key_values
        with force_adapter(model, "rank4"):
            model(torch.tensor([[4]]), past_key_values=cache)
    with pytest.raises(UsageError) as caught:
        logits_of(model, [5], past_key_values=cache)
    assert str(caught.value) == "the cache holds 4 tokens, but the plain base has read 3 of them"


def test_unlikely_segment_gets_the_base_and_the_others_do_not(
    bundle: Path, two_tasks: tuple[list[int], list[int], str, str]
) -> None:
    first, second, *_ = two_tasks
    model = loaded(bundle)
    with routing(model) as record:
        logits_of(model, first + second)
    sure, unsure = sorted(record.decisions, key=lambda decision: -decision.confidence)
    with route_as(model, abstain=sure.confidence - 1e-4), routing(model) as record:
        logits_of(model, first + second)
    found = record.modules["model.layers.0.self_attn.q_proj"].selection[0, :, 0]
    assert bool((found[unsure.start : unsure.end] == -1).all())
    assert bool((found[sure.start : sure.end] >= 0).all())
    assert {d.members for d in record.decisions} == {sure.members, ()}
