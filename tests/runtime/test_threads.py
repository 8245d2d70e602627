"""Many threads on one model: every pass, answer, record and gradient is that of the same call made alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from meteora_registry.kernels.reference import relative_error
from meteora_registry.runtime import LoadedBundle, force_adapter, generate, load_bundle, route_as, routing
from meteora_registry.runtime.tracing import trace
from meteora_registry.schemas.errors import UsageError
from support.answering import MEMBERS, make_workplace
from support.examples import TIMES
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT, logits_of, some_tokens, tiny_llama
from support.scopes import MAX_ERROR, SCOPES, answers, loaded

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]
# Each waits for the others' turns in Python, which costs more than its own passes.
THREADS = 4 if TIMES == 1 else 8
# How often each request is made among the others.
PASSES = 3 if TIMES == 1 else 26
# How often each longer call is made, such as an answer with its record.
CALLS = 1 if TIMES == 1 else 4


def in_pool(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Return what the calls return, each made by a thread of a pool."""
    with ThreadPoolExecutor(THREADS) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def requests() -> list[Tensor]:
    """Return batches of one and two prompts of several lengths, two of each kind."""
    kinds = [(1, 3), (2, 7)] if TIMES == 1 else [(1, 3), (1, 7), (2, 3), (2, 7)]
    return [some_tokens(batch=batch, length=length, seed=seed) for batch, length in kinds for seed in (5, 9)]


@pytest.mark.parametrize("scope", SCOPES)
def test_many_passes_are_those_of_each_alone(bundles: dict[str, Path], scope: str) -> None:
    model = loaded(bundles[scope])
    alone = [logits_of(model, tokens) for tokens in requests()]
    order = [place for place in range(len(alone)) for _ in range(PASSES)]
    random.Random(0).shuffle(order)
    found = in_pool([lambda place=place: logits_of(model, requests()[place]) for place in order])
    assert all(
        relative_error(logits, alone[place]) <= MAX_ERROR for logits, place in zip(found, order, strict=True)
    )


@pytest.mark.parametrize("scope", SCOPES)
def test_choice_for_the_model_holds_in_every_thread(bundles: dict[str, Path], scope: str) -> None:
    model = loaded(bundles["token"])
    with force_adapter(model, "rank8"):
        forced = [logits_of(model, tokens) for tokens in requests()]
        found = in_pool([lambda tokens=tokens: logits_of(model, tokens) for tokens in requests()])
        assert all(relative_error(*pair) <= MAX_ERROR for pair in zip(found, forced, strict=True))
    with route_as(model, scope=scope, top_k=1):
        ruled = [logits_of(model, tokens) for tokens in requests()]
        found = in_pool([lambda tokens=tokens: logits_of(model, tokens) for tokens in requests()])
        assert all(relative_error(*pair) <= MAX_ERROR for pair in zip(found, ruled, strict=True))


@pytest.mark.parametrize("scope", SCOPES)
def test_answers_in_a_pool_are_those_of_each_alone(bundles: dict[str, Path], scope: str) -> None:
    model = loaded(bundles[scope])
    prompts = [tokens.tolist() for tokens in requests()]
    alone = [answers(model, each, 4) for each in prompts]
    assert in_pool([lambda each=each: answers(model, each, 4) for each in prompts]) == alone


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> LoadedBundle:
    made = make_workplace(tmp_path_factory.mktemp("threads"))
    return load_bundle(made.bundle, made.base)


PROMPTS = ["w1 w2", "w5 w6 w7 w8", "w3", "w9 w2 w4"][: 2 if TIMES == 1 else None]
CHOICES: list[dict[str, Any]] = [
    {},
    *({"member": member} for member in MEMBERS),
    *({"scope": scope, "top_k": 1} for scope in SCOPES),
    {"member": None},
]


def test_choice_for_a_call_holds_for_that_call_alone(workplace: LoadedBundle) -> None:
    calls = [
        lambda prompt=prompt, choice=choice: workplace.generate(prompt, max_new_tokens=3, **choice)
        for prompt in PROMPTS
        for choice in CHOICES
    ]
    alone = [call() for call in calls]
    assert len(set(alone[: len(CHOICES)])) > 1, "all choices answer alike, so the test shows nothing"
    assert in_pool(calls) == alone
    # A call's own choice comes before the model's, whose block still holds for the others.
    with force_adapter(workplace.model, MEMBERS[1]):
        assert generate(workplace, PROMPTS, max_new_tokens=3, member=MEMBERS[0]) == [
            alone[len(CHOICES) * place + 1] for place in range(len(PROMPTS))
        ]
        assert generate(workplace, PROMPTS[0], max_new_tokens=3) == alone[2]


def test_choice_that_the_bundle_does_not_have_is_refused(workplace: LoadedBundle) -> None:
    with pytest.raises(UsageError, match="has no member `nine`"):
        workplace.generate("w1", member="nine")
    with pytest.raises(UsageError, match="top_k is 9, expected 1 to the number of members"):
        workplace.generate("w1", top_k=9)


def test_traces_in_a_pool_are_those_of_each_alone(workplace: LoadedBundle) -> None:
    calls = [lambda p=p: trace(workplace, p, max_new_tokens=3, bundle="tiny") for p in PROMPTS * 2 * CALLS]
    assert in_pool(calls) == [call() for call in calls]


@pytest.mark.parametrize("scope", SCOPES)
def test_records_in_a_pool_are_those_of_each_alone(bundles: dict[str, Path], scope: str) -> None:
    model = loaded(bundles[scope])

    def recorded(tokens: Tensor) -> tuple[Any, ...]:
        with routing(model) as record:
            answers(model, tokens.tolist(), 3)
        return record.decisions, [found.selection.tolist() for found in record.modules.values()]

    calls = [lambda tokens=tokens: recorded(tokens) for tokens in requests() * CALLS]
    assert in_pool(calls) == [call() for call in calls]


def test_record_of_the_model_has_the_latest_request_of_other_threads_whole(bundles: dict[str, Path]) -> None:
    model = loaded(bundles["prompt"])
    lengths = set()
    with routing(model) as record:
        in_pool([lambda each=each: answers(model, each.tolist(), 3) for each in requests() * CALLS])
        lengths = {found.selection.shape[:2] for found in record.modules.values()}
    assert len(lengths) == 1
    assert lengths <= {torch.Size((batch, length + 2)) for batch in (1, 2) for length in (3, 7)}


def gradients(loss: Tensor, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the gradients of some parameters, without adding them to the parameters."""
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: each for name, each in zip(parameters, found, strict=True) if each is not None}


# Each scope with one way of computing again, in turn; with METEORA_EXAMPLES with both.
RECOMPUTED = [
    pytest.param(scope, is_reentrant, id=f"{scope}-{'reentrant' if is_reentrant else 'saved-tensors'}")
    for place, scope in enumerate(SCOPES)
    for is_reentrant in (False, True)
    if TIMES > 1 or is_reentrant == bool(place % 2)
]


@pytest.mark.parametrize(("scope", "reentrant"), RECOMPUTED)
def test_recomputed_gradients_in_threads_are_those_of_each_alone(
    bundles: dict[str, Path], scope: str, reentrant: bool
) -> None:
    model = PeftModel.from_pretrained(tiny_llama(), bundles[scope], is_trainable=True).train()
    parameters = {name: each for name, each in model.named_parameters() if "meteora_B" in name}
    for parameter in parameters.values():
        parameter.requires_grad = True

    def backward(tokens: Tensor, member: str | None = None) -> dict[str, Tensor]:
        labels = tokens.clone()
        labels[:, :2] = -100
        if member is None:
            loss = model(input_ids=tokens, labels=labels).loss
        else:
            with force_adapter(model, member):
                loss = model(input_ids=tokens, labels=labels).loss
        if not reentrant:
            return gradients(loss, parameters)
        # It allows no other way than to add to `.grad`, so one thread at a time goes backward.
        model.zero_grad()
        loss.backward()
        return {name: each.grad.clone() for name, each in parameters.items() if each.grad is not None}

    batches = requests()[:4]
    plain = [backward(tokens) for tokens in batches]
    forced = backward(batches[0], "rank8")
    model.base_model.model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    pooled = [] if reentrant else in_pool([lambda each=each: backward(each) for each in batches * CALLS])
    found = [*(backward(tokens) for tokens in batches), *pooled, backward(batches[0], "rank8")]
    for each, expected in zip(found, [*plain, *(plain * CALLS if pooled else []), forced], strict=True):
        assert each.keys() == expected.keys()
        # A gradient whose terms cancel is 0 or rounding, so all are measured by the largest.
        largest = max(gradient.abs().max() for gradient in expected.values())
        assert all((each[name] - expected[name]).abs().max() <= MAX_ERROR * largest for name in expected)


@pytest.mark.parametrize("scope", SCOPES)
def test_unknown_recomputation_is_refused_by_name(bundles: dict[str, Path], scope: str) -> None:
    model = PeftModel.from_pretrained(tiny_llama(), bundles[scope], is_trainable=True).train()
    layer = model.get_submodule("base_model.model.model.layers.1.mlp.up_proj")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "meteora_B" in name
    plain = layer.forward
    layer.forward = lambda x: torch.utils.checkpoint.checkpoint(plain, x, use_reentrant=False)
    loss = model(input_ids=some_tokens(), labels=some_tokens()).loss
    with pytest.raises(
        UsageError, match=r"`model.layers.1.mlp.up_proj` is computed again in a backward pass"
    ):
        loss.backward()


def test_failed_pass_leaves_nothing_behind(bundles: dict[str, Path]) -> None:
    model = loaded(bundles["prompt"])
    expected = logits_of(model)
    layer = model.get_submodule("base_model.model.model.layers.1.mlp.up_proj")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for error in (interrupt, lambda *_: 1 / 0):
        handle = layer.register_forward_pre_hook(error)
        with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
            logits_of(model, some_tokens(seed=9))
        handle.remove()
        assert torch.equal(logits_of(model), expected)
    with pytest.raises(UsageError, match="was called outside a forward pass"):
        layer(torch.zeros(1, 3, 32))
