"""Requests in batches and with caches: who is decided together, what a cache remembers, who abstains."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from meteora_registry.kernels.reference import relative_error
from meteora_registry.kernels.routing import Routing
from meteora_registry.runtime import force_adapter, route_as, routing
from meteora_registry.schemas.errors import UsageError
from support.bundles import write_bundle
from support.models import (
    LOADS_UNFITTED,
    LOADS_WITH_PEFT,
    logits_of,
    some_tokens,
    tiny_llama,
)
from support.routed_reference import PlainBundle, base_evidence
from support.scopes import (
    MAX_ERROR,
    PROMPTS,
    REQUEST_SCOPES,
    SCOPES,
    answers,
    expected_logits,
    loaded,
)

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]
PROMPT_SCOPES = ["prompt", "prompt+token"]


@pytest.mark.parametrize("scope", SCOPES)
def test_padded_batch_answers_as_each_prompt_alone(bundles: dict[str, Path], scope: str) -> None:
    model = loaded(bundles[scope])
    assert answers(model, PROMPTS) == [answers(model, [prompt])[0] for prompt in PROMPTS]


@pytest.mark.parametrize("scope", SCOPES)
def test_answer_with_a_cache_is_that_of_full_passes(bundles: dict[str, Path], scope: str) -> None:
    prompt = some_tokens(batch=3, length=8)
    tokens = prompt
    for _ in range(5):
        logits = expected_logits(scope, bundles[scope], tokens, 8)
        tokens = torch.cat([tokens, logits[:, -1:].argmax(dim=-1)], dim=1)
    assert answers(loaded(bundles[scope]), prompt.tolist(), 5) == tokens[:, 8:].tolist()


def test_requests_of_a_batch_decide_apart(bundles: dict[str, Path]) -> None:
    model = loaded(bundles["prompt"])
    with route_as(model, top_k=1), routing(model) as record:
        together = answers(model, PROMPTS)
    chosen = [decision.members[0] for decision in record.decisions]
    assert len(set(chosen)) > 1, "all prompts choose alike, so the test shows nothing"
    for prompt, member, answer in zip(PROMPTS, chosen, together, strict=True):
        with force_adapter(model, member):
            assert answers(model, [prompt])[0] == answer


@pytest.mark.parametrize("scope", SCOPES)
def test_tables_are_forgotten_where_asked_and_the_decisions_stay(
    bundles: dict[str, Path], scope: str
) -> None:
    model = loaded(bundles[scope])
    with routing(model) as whole:
        answers(model, PROMPTS, 3)
    taken: list[dict[str, Routing]] = []
    with routing(model) as record:

        def take(*_: object) -> None:
            taken.append(record.modules)
            record.forget_modules()

        hook = model.base_model.model.register_forward_pre_hook(take)
        answers(model, PROMPTS, 3)
        hook.remove()
        take()
    assert record.modules == {}
    assert record.decisions == whole.decisions
    for path, expected in whole.modules.items():
        parts = [tables[path].selection for tables in taken if tables]
        assert [part.shape[1] for part in parts] == [max(map(len, PROMPTS)), 1, 1]
        assert torch.equal(torch.cat(parts, dim=1), expected.selection)


@pytest.mark.parametrize("scope", REQUEST_SCOPES)
def test_beam_search_of_a_batch_is_that_of_each_prompt_alone(bundles: dict[str, Path], scope: str) -> None:
    model = loaded(bundles[scope])
    together = answers(model, PROMPTS, num_beams=3)
    assert together == [answers(model, [prompt], num_beams=3)[0] for prompt in PROMPTS]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    "options",
    [{"use_cache": False}, {"prefill_chunk_size": 2}, {"prefill_chunk_size": 4, "num_beams": 2}],
    ids=["no-cache", "pieces", "pieces-beams"],
)
def test_prompt_decides_however_its_tokens_arrive(
    bundles: dict[str, Path], scope: str, options: dict[str, object]
) -> None:
    model = loaded(bundles[scope])
    plain = {name: value for name, value in options.items() if name == "num_beams"}
    assert answers(model, PROMPTS, 4, **options) == answers(model, PROMPTS, 4, **plain)


@pytest.mark.parametrize("scope", REQUEST_SCOPES)
def test_static_cache_answers_as_a_growing_one(bundles: dict[str, Path], scope: str) -> None:
    model = loaded(bundles[scope])
    assert answers(model, PROMPTS, cache_implementation="static") == answers(model, PROMPTS)


@pytest.mark.parametrize("scope", SCOPES)
def test_guessed_tokens_that_are_taken_back_change_no_answer(bundles: dict[str, Path], scope: str) -> None:
    model = loaded(bundles[scope])
    prompt = [[7, 9, 11] * 4]
    expected = answers(model, prompt, 8)
    assert answers(model, prompt, 8, prompt_lookup_num_tokens=3) == expected
    assert answers(model, prompt, 8, assistant_model=tiny_llama()) == expected
    assert answers(model, prompt, 8, assistant_model=loaded(bundles[scope]).base_model.model) == expected


def started(model: nn.Module, tokens: Tensor) -> object:
    with torch.no_grad():
        return model(tokens, use_cache=True).past_key_values


@pytest.mark.parametrize("scope", REQUEST_SCOPES)
def test_decision_goes_with_the_cache(bundles: dict[str, Path], scope: str) -> None:
    model = loaded(bundles[scope])
    first, second = some_tokens(batch=2, length=6), some_tokens(batch=2, length=6, seed=9)
    step = some_tokens(batch=2, length=1, seed=3)
    alone = logits_of(model, step, past_key_values=started(model, first))
    cache = started(model, first)
    copied = copy.deepcopy(cache)
    # Another request in between, and a fresh pass, change nothing for the one that has begun.
    logits_of(model, step, past_key_values=started(model, second))
    assert torch.equal(logits_of(model, step, past_key_values=copied), alone)
    assert torch.equal(logits_of(model, step, past_key_values=cache), alone)


@pytest.mark.parametrize("scope", REQUEST_SCOPES)
def test_rows_of_a_cache_take_their_decisions_along(bundles: dict[str, Path], scope: str) -> None:
    model = loaded(bundles[scope])
    tokens, step = some_tokens(batch=3, length=6), some_tokens(batch=3, length=1, seed=3)
    with route_as(model, top_k=1), routing(model) as record:
        plain = logits_of(model, step, past_key_values=started(model, tokens))
        assert len({decision.members for decision in record.decisions}) > 1
        cache = started(model, tokens)
        order = torch.tensor([2, 0, 0])
        cache.reorder_cache(order)
        assert relative_error(logits_of(model, step[order], past_key_values=cache), plain[order]) <= MAX_ERROR
        cache = started(model, tokens)
        cache.batch_repeat_interleave(2)
        twice = logits_of(model, step.repeat_interleave(2, dim=0), past_key_values=cache)
        assert relative_error(twice, plain.repeat_interleave(2, dim=0)) <= MAX_ERROR


def test_cache_that_others_wrote_is_refused(bundles: dict[str, Path]) -> None:
    model = loaded(bundles["prompt"])
    with model.disable_adapter():
        cache = started(model, some_tokens())
    with pytest.raises(UsageError) as caught:
        logits_of(model, some_tokens(length=1), past_key_values=cache)
    assert str(caught.value) == (
        "the cache holds tokens of which bundle `default` decided nothing by its present rule: the base, a "
        "forced member or another rule wrote them"
    )
    cache = started(model, some_tokens())
    with pytest.raises(UsageError), route_as(model, top_k=1):
        logits_of(model, some_tokens(length=1), past_key_values=cache)


@pytest.mark.parametrize("scope", REQUEST_SCOPES)
def test_unlikely_request_gets_the_base_alone(adapters: dict[str, Path], tmp_path: Path, scope: str) -> None:
    model = loaded(write_bundle(tmp_path, adapters, scope=scope, abstain=1.0))
    tokens = some_tokens(length=8)
    with routing(model) as record:
        assert torch.equal(logits_of(model, tokens), logits_of(tiny_llama(), tokens))
    assert {decision.members for decision in record.decisions} == {()}
    assert all(bool((found.selection == -1).all()) for found in record.modules.values())
    assert answers(model, PROMPTS) == answers(tiny_llama(), PROMPTS)


@pytest.mark.parametrize("scope", PROMPT_SCOPES)
def test_requests_of_a_batch_abstain_apart(bundles: dict[str, Path], scope: str) -> None:
    model = loaded(bundles[scope])
    with routing(model) as record:
        served = answers(model, PROMPTS)
    confidences = [decision.confidence for decision in record.decisions]
    threshold = sorted(confidences)[2]
    unserved = answers(tiny_llama(), PROMPTS)
    assert served != unserved
    with route_as(model, abstain=threshold):
        assert answers(model, PROMPTS) == [
            answer if confidence >= threshold else base
            for answer, base, confidence in zip(served, unserved, confidences, strict=True)
        ]


def test_confidence_is_the_geometric_mean_posterior(bundles: dict[str, Path]) -> None:
    model, bundle = loaded(bundles["prompt"]), PlainBundle(bundles["prompt"])
    with routing(model) as record:
        answers(model, PROMPTS)
    for prompt, decision in zip(PROMPTS, record.decisions, strict=True):
        mean = base_evidence(tiny_llama(), bundle, prompt).mean(dim=0)
        assert decision.confidence == pytest.approx(mean.max().exp().item(), rel=1e-5)
        assert decision.members[0] == bundle.members[int(mean.argmax())]
        assert decision.evidence == pytest.approx(mean.softmax(dim=-1).tolist(), rel=1e-4)
        assert (decision.start, decision.end) == (0, 9 + 3)


@pytest.mark.parametrize("scope", REQUEST_SCOPES)
@pytest.mark.parametrize("top_k", [1, 2])
def test_cache_of_an_earlier_turn_answers_as_the_whole_prompt(
    bundles: dict[str, Path], scope: str, top_k: int
) -> None:
    model = loaded(bundles[scope])
    with route_as(model, top_k=top_k):
        for seed in range(3):
            prefix, more = some_tokens(batch=1, length=6), some_tokens(batch=1, length=8, seed=seed)
            cache = started(model, prefix)
            prompt = torch.cat([prefix, more], dim=1).tolist()
            assert answers(model, prompt, 3, past_key_values=cache) == answers(model, prompt, 3)


def test_whole_prompt_that_decides_as_its_beginning_did_is_not_read_again(bundles: dict[str, Path]) -> None:
    model = loaded(bundles["prompt"])
    read: list[int] = []
    with route_as(model, top_k=1), routing(model) as record:

        def chosen(tokens: Tensor) -> tuple[str, ...]:
            logits_of(model, tokens)
            return record.decisions[0].members

        prompt = some_tokens(batch=1, length=6)
        longer = [torch.cat([prompt, some_tokens(batch=1, length=6, seed=seed)], dim=1) for seed in range(20)]
        whole = next(tokens for tokens in longer if chosen(tokens) == chosen(prompt))
        cache = started(model, prompt)
        module = model.base_model.model
        handle = module.register_forward_pre_hook(
            lambda _, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
        )
        answers(model, whole.tolist(), 1, past_key_values=cache)
        handle.remove()
    assert read == [6]


def test_tokens_behind_a_cache_without_those_in_it_are_refused(bundles: dict[str, Path]) -> None:
    model = loaded(bundles["prompt"])
    cache = started(model, some_tokens(batch=1, length=6))
    with pytest.raises(UsageError) as caught:
        model.generate(
            input_ids=some_tokens(batch=1, length=2),
            attention_mask=torch.ones(1, 8, dtype=torch.int64),
            past_key_values=cache,
            max_new_tokens=2,
        )
    assert str(caught.value) == (
        "the cache holds 6 tokens, and `generate` was given the tokens behind them alone: the bundle's scope "
        "`prompt` decides for the whole prompt"
    )


@pytest.mark.parametrize("name", ["generate_batch", "init_continuous_batching"])
def test_continuous_batching_is_refused_where_the_request_decides(
    bundles: dict[str, Path], name: str
) -> None:
    model = loaded(bundles["prompt"])
    with pytest.raises(UsageError) as caught:
        getattr(model, name)(inputs=PROMPTS)
    assert str(caught.value) == (
        f"continuous batching (`{name}`) puts several requests into one row of tokens, but the bundle's "
        "scope `prompt` decides for each row"
    )


@pytest.mark.parametrize("scope", REQUEST_SCOPES)
def test_row_of_several_texts_is_refused(bundles: dict[str, Path], scope: str) -> None:
    model = loaded(bundles[scope])
    with pytest.raises(UsageError, match="`position_ids` start again within a row, so it holds"):
        logits_of(model, some_tokens(batch=1, length=5), position_ids=torch.tensor([[0, 1, 2, 0, 1]]))


def test_batch_without_a_mask_is_warned_of_once(bundles: dict[str, Path]) -> None:
    model = loaded(bundles["prompt"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for batch in (2, 3):
            logits_of(model, some_tokens(batch=batch))
        answers(model, PROMPTS)
        logits_of(model, some_tokens(batch=2), attention_mask=torch.ones(2, some_tokens().shape[1]))
    assert [str(warning.message)[:31] for warning in caught] == ["a batch without `attention_mask"]


def test_generate_with_a_mask_of_ones_warns_of_nothing(bundles: dict[str, Path]) -> None:
    model = loaded(bundles["prompt"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompts = some_tokens(batch=2)
        model.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=2)


def test_generate_is_the_models_own_again_after_unload(bundles: dict[str, Path]) -> None:
    model = loaded(bundles["prompt"])
    assert "generate" not in vars(model.unload())
