"""What each routing scope computes, against the definition written out in plain torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from meteora_registry.kernels.tolerance import relative_error
from meteora_registry.runtime import force_adapter, route_as, routing, uniform
from meteora_registry.runtime.scopes.chain import SWITCH_PROBABILITY
from meteora_registry.runtime.scopes.segment import INDEPENDENT_GATES
from meteora_registry.schemas.errors import UsageError
from support.bundles import write_bundle
from support.models import (
    LOADS_UNFITTED,
    LOADS_WITH_PEFT,
    logits_of,
    make_adapter,
    make_llama_adapters,
    save_base,
    some_tokens,
    tiny_gpt2,
    tiny_llama,
)
from support.routed_reference import PlainBundle, Weights, base_evidence, routed

pytestmark = [
    LOADS_UNFITTED,
    LOADS_WITH_PEFT,
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
]

SCOPES = ["token", "layer", "prompt", "prompt+token", "segment"]
REQUEST_SCOPES = ["prompt", "prompt+token", "segment"]
PROMPT_SCOPES = ["prompt", "prompt+token"]
MAX_ERROR = 1e-5


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_llama_adapters(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def bundles(adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One bundle for each scope; they differ in nothing else."""
    folder = tmp_path_factory.mktemp("bundles")
    base = str(save_base(tiny_llama(), folder / "base"))
    return {
        scope: write_bundle(folder / scope, adapters, base=base, temperature=0.5, scope=scope)
        for scope in SCOPES
    }


def loaded(bundle: Path) -> PeftModel:
    return PeftModel.from_pretrained(tiny_llama(), bundle)


def by_token(bundle: PlainBundle) -> Weights:
    return lambda path, x: bundle.top_k(bundle.logits(path, x))


def by_layer(bundle: PlainBundle) -> Weights:
    decided: dict[str, Tensor] = {}

    def weights(path: str, x: Tensor) -> Tensor:
        layer = ".".join(path.split(".")[:3])
        if path.endswith("q_proj"):
            decided[layer] = bundle.top_k(bundle.logits(path, x))
        return decided[layer]

    return weights


def by_prompt(bundle: PlainBundle, prompts: list[list[int]]) -> Tensor:
    """How much of each member every request takes, [B, L]."""
    base = tiny_llama()
    return torch.stack([bundle.top_k(base_evidence(base, bundle, prompt).mean(dim=0)) for prompt in prompts])


def by_segment(bundle: PlainBundle, tokens: list[int], prompt_tokens: int) -> Tensor:
    """How much of each member every token takes, [T, L]: forward-backward with the whole matrix."""
    evidence = (INDEPENDENT_GATES * base_evidence(tiny_llama(), bundle, tokens).double()).exp()
    members = evidence.shape[-1]
    identity, uniform = torch.eye(members, dtype=torch.float64), torch.full((members,), 1 / members).double()
    move = (1 - SWITCH_PROBABILITY) * identity + SWITCH_PROBABILITY * uniform
    forward, backward = [uniform * evidence[0]], [torch.ones_like(uniform)]
    for token in range(1, prompt_tokens):
        forward.append((forward[-1] @ move) * evidence[token])
    for token in reversed(range(1, prompt_tokens)):
        backward.insert(0, move @ (evidence[token] * backward[0]))
    found = [a * b / (a * b).sum() for a, b in zip(forward, backward, strict=True)]
    prior = (torch.stack(found).sum(dim=0) + 1) / (prompt_tokens + members)
    move = (1 - SWITCH_PROBABILITY) * identity + SWITCH_PROBABILITY * prior
    for token in range(prompt_tokens, len(tokens)):
        found.append((found[-1] @ move) * evidence[token])
        found[-1] /= found[-1].sum()
    return bundle.top_k(torch.stack(found).log()).float()


def expected_logits(scope: str, folder: Path, tokens: Tensor, prompt_tokens: int) -> Tensor:
    bundle = PlainBundle(folder)
    if scope == "layer":
        weights = by_layer(bundle)
    elif scope == "token":
        weights = by_token(bundle)
    elif scope == "segment":
        segments = torch.stack([by_segment(bundle, row, prompt_tokens) for row in tokens.tolist()])

        def weights(path: str, x: Tensor) -> Tensor:
            return segments
    else:
        prompts = [row[:prompt_tokens] for row in tokens.tolist()]
        request = by_prompt(bundle, prompts).unsqueeze(1)

        def weights(path: str, x: Tensor) -> Tensor:
            decided = request.expand(*x.shape[:2], -1).clone()
            if scope == "prompt+token":
                decided[:, prompt_tokens:] = by_token(bundle)(path, x)[:, prompt_tokens:]
            return decided

    base = tiny_llama()
    with routed(base, (bundle, weights)):
        return logits_of(base, tokens)


LOADERS: dict[str, Callable[[Path], nn.Module]] = {
    "PeftModel": loaded,
    "AutoPeftModel": AutoPeftModelForCausalLM.from_pretrained,
    "AutoModel": AutoModelForCausalLM.from_pretrained,
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("scope", SCOPES)
def test_scope_computes_its_definition_however_it_is_loaded(
    bundles: dict[str, Path], scope: str, load: Callable[[Path], nn.Module]
) -> None:
    tokens = some_tokens(batch=4, length=11)
    labels = tokens.clone()
    labels[:, :7] = -100
    model = load(bundles[scope]).eval()
    expected = expected_logits(scope, bundles[scope], tokens, 7)
    assert relative_error(logits_of(model, tokens, labels=labels), expected) <= MAX_ERROR
    assert relative_error(logits_of(model, tokens), expected_logits(scope, bundles[scope], tokens, 11)) <= (
        MAX_ERROR
    )


def test_scopes_differ(bundles: dict[str, Path]) -> None:
    found = [logits_of(loaded(bundle), some_tokens()) for bundle in bundles.values()]
    assert relative_error(found[0], found[1]) > 1e-3
    assert relative_error(found[1], found[2]) > 1e-3
    # Without labels every token belongs to the prompt.
    assert torch.equal(found[2], found[3])


def padded(prompts: list[list[int]]) -> dict[str, Tensor]:
    """A batch of prompts of different lengths, padded on the left."""
    width = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts]),
        "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
    }


PROMPTS = [
    row[:length] for row, length in zip(some_tokens(batch=4, length=9).tolist(), (9, 4, 6, 2), strict=True)
]


def answers(
    model: nn.Module, prompts: list[list[int]], tokens: int = 6, **options: object
) -> list[list[int]]:
    batch = padded(prompts)
    found = model.generate(**batch, max_new_tokens=tokens, do_sample=False, pad_token_id=0, **options)
    return [row[batch["input_ids"].shape[1] :] for row in found.tolist()]


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


@pytest.mark.parametrize("scope", REQUEST_SCOPES)
def test_beam_search_of_a_batch_is_that_of_each_prompt_alone(bundles: dict[str, Path], scope: str) -> None:
    model = loaded(bundles[scope])
    together = answers(model, PROMPTS, num_beams=3)
    assert together == [answers(model, [prompt], num_beams=3)[0] for prompt in PROMPTS]


@pytest.mark.parametrize("scope", REQUEST_SCOPES)
def test_generation_without_a_cache_takes_each_pass_for_a_request(
    bundles: dict[str, Path], scope: str
) -> None:
    tokens = some_tokens(batch=1, length=8)
    for _ in range(4):
        logits = expected_logits(scope, bundles[scope], tokens, tokens.shape[1])
        tokens = torch.cat([tokens, logits[:, -1:].argmax(dim=-1)], dim=1)
    assert answers(loaded(bundles[scope]), some_tokens(batch=1, length=8).tolist(), 4, use_cache=False) == (
        tokens[:, 8:].tolist()
    )


@pytest.mark.parametrize("scope", REQUEST_SCOPES)
def test_static_cache_answers_as_a_growing_one(bundles: dict[str, Path], scope: str) -> None:
    model = loaded(bundles[scope])
    assert answers(model, PROMPTS, cache_implementation="static") == answers(model, PROMPTS)


@pytest.mark.parametrize("scope", ["token", "layer"])
def test_guessed_tokens_that_are_taken_back_change_no_answer(bundles: dict[str, Path], scope: str) -> None:
    model = loaded(bundles[scope])
    prompt = [[7, 9, 11] * 4]
    expected = answers(model, prompt, 12)
    assert answers(model, prompt, 12, prompt_lookup_num_tokens=3) == expected


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
        assert (decision.start, decision.end) == (0, 9 + 5)


@pytest.mark.parametrize("scope", ["prompt", "token"])
def test_two_bundles_decide_apart_on_the_plain_base(
    adapters: dict[str, Path], bundles: dict[str, Path], tmp_path: Path, scope: str
) -> None:
    second = write_bundle(tmp_path, dict(list(adapters.items())[:3]), top_k=1, scope=scope, seed=4)
    model = PeftModel.from_pretrained(tiny_llama(), bundles["prompt+token"], adapter_name="first")
    model.load_adapter(second, adapter_name="second")
    model.base_model.set_adapter(["first", "second"])
    tokens, base = some_tokens(length=8), tiny_llama()

    def as_decided(folder: Path) -> tuple[PlainBundle, Weights]:
        bundle = PlainBundle(folder)
        request = by_prompt(bundle, tokens.tolist()).unsqueeze(1)
        return bundle, lambda path, x: request.expand(*x.shape[:2], -1)

    beside = PlainBundle(second)
    parts = as_decided(second) if scope == "prompt" else (beside, by_token(beside))
    with routed(base, as_decided(bundles["prompt+token"]), parts):
        expected = logits_of(base, tokens)
    assert relative_error(logits_of(model, tokens), expected) <= MAX_ERROR
    with pytest.raises(UsageError, match="the model has 2 active bundles, `first`, `second`, expected one"):
        routing(model).__enter__()


@pytest.mark.parametrize("scope", SCOPES)
def test_uniform_gives_every_member_the_same_weight(bundles: dict[str, Path], scope: str) -> None:
    model, bundle, base = loaded(bundles[scope]), PlainBundle(bundles[scope]), tiny_llama()
    with routed(base, (bundle, lambda path, x: torch.full((*x.shape[:2], 5), 0.2))):
        expected = logits_of(base, some_tokens())
    before = logits_of(model, some_tokens())
    with uniform(model):
        assert relative_error(logits_of(model, some_tokens()), expected) <= MAX_ERROR
    assert torch.equal(logits_of(model, some_tokens()), before)


@pytest.mark.parametrize("scope", SCOPES)
def test_forced_and_disabled_hold_in_every_scope(bundles: dict[str, Path], scope: str) -> None:
    model, token = loaded(bundles[scope]), loaded(bundles["token"])
    before = logits_of(model, some_tokens())
    with force_adapter(model, "rank8"), force_adapter(token, "rank8"):
        assert torch.equal(logits_of(model, some_tokens()), logits_of(token, some_tokens()))
        assert answers(model, PROMPTS) == answers(token, PROMPTS)
    with model.disable_adapter():
        assert torch.equal(logits_of(model, some_tokens()), logits_of(tiny_llama(), some_tokens()))
    assert torch.equal(logits_of(model, some_tokens()), before)


@pytest.mark.parametrize("scope", SCOPES)
def test_rule_of_a_block_is_that_of_a_bundle(bundles: dict[str, Path], scope: str) -> None:
    model = loaded(bundles["token"])
    before = logits_of(model, some_tokens())
    with route_as(model, scope=scope):
        assert torch.equal(logits_of(model, some_tokens()), logits_of(loaded(bundles[scope]), some_tokens()))
    assert torch.equal(logits_of(model, some_tokens()), before)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            {"scope": "page"},
            "the scope is `page`, expected one of `token`, `layer`, `prompt`, `prompt+token`, `segment`",
        ),
        ({"top_k": 6}, "top_k is 6, expected 1 to the number of members, 5"),
        ({"temperature": 0.0}, "the temperature is 0.0, expected 1e-06 to 1e+06"),
        ({"abstain": 0.5}, "the scope `token` decides token by token and cannot abstain"),
        ({"scope": "prompt", "abstain": 2.0}, "abstain is 2.0, expected above 0 and at most 1"),
    ],
    ids=["scope", "top_k", "temperature", "abstain", "abstain range"],
)
def test_rule_out_of_range_is_refused(
    bundles: dict[str, Path], rule: dict[str, object], message: str
) -> None:
    model = loaded(bundles["token"])
    with pytest.raises(UsageError) as caught, route_as(model, **rule):
        pass
    assert str(caught.value) == message


def test_module_called_by_itself_is_refused_where_the_request_decides(bundles: dict[str, Path]) -> None:
    model = loaded(bundles["prompt"])
    with pytest.raises(UsageError, match=r"`model.layers.0.mlp.up_proj` was called outside a forward pass"):
        model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")(torch.zeros(1, 2, 32))


def test_record_is_about_the_latest_request(bundles: dict[str, Path]) -> None:
    model, bundle = loaded(bundles["token"]), PlainBundle(bundles["token"])
    tokens = some_tokens(batch=2, length=5)
    with routing(model) as record:
        answers(model, PROMPTS)
        answers(model, tokens.tolist(), 3)
    assert record.modules.keys() == set(bundle.paths)
    assert all(found.selection.shape == (2, 7, 2) for found in record.modules.values())
    embedded = tiny_llama().model.embed_tokens(tokens)
    normed = tiny_llama().model.layers[0].input_layernorm(embedded)
    path = "model.layers.0.self_attn.q_proj"
    expected = bundle.logits(path, normed).topk(2).indices
    assert torch.equal(record.modules[path].selection[:, :5], expected)
    assert record.decisions == ()


@pytest.mark.parametrize("scope", SCOPES)
def test_gradient_checkpointing_gives_the_same_gradients_in_every_scope(
    bundles: dict[str, Path], scope: str
) -> None:
    model = PeftModel.from_pretrained(tiny_llama(), bundles[scope], is_trainable=True).train()
    plain = gradients(model)
    model.base_model.model.activation_checkpointing_enable()
    model.enable_input_require_grads()
    checkpointed = gradients(model)
    assert plain.keys() == checkpointed.keys()
    assert all(relative_error(checkpointed[name], plain[name]) <= MAX_ERROR for name in plain)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "meteora_gate" in name or "meteora_B" in name
    model.zero_grad()
    tokens = some_tokens()
    labels = tokens.clone()
    labels[:, :4] = -100
    model(input_ids=tokens, labels=labels).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert any(bool(gradient.any()) for gradient in found.values())
    return found


def test_decision_of_a_request_in_training_is_without_dropout(tmp_path: Path) -> None:
    members = {
        name: make_adapter(
            tiny_gpt2, tmp_path / name, seed=rank, r=rank, fan_in_fan_out=True, target_modules=["c_attn"]
        )
        for name, rank in [("a", 4), ("b", 8)]
    }
    model = PeftModel.from_pretrained(
        tiny_gpt2(), write_bundle(tmp_path / "bundle", members, scope="prompt"), is_trainable=True
    )
    with routing(model) as record:
        logits_of(model.eval(), some_tokens())
        expected = record.decisions
        parts = [part.training for part in model.train().modules()]
        assert not torch.equal(logits_of(model, some_tokens()), logits_of(model, some_tokens()))
        assert record.decisions == expected
    assert [part.training for part in model.modules()] == parts
