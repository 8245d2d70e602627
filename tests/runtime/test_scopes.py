"""The output of each routing scope, against the definition written out in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

from meteora_registry.kernels.reference import relative_error
from meteora_registry.runtime import force_adapter, route_as, routing, uniform
from meteora_registry.schemas.errors import UsageError
from support.bundles import write_bundle
from support.models import (
    LOADS_UNFITTED,
    LOADS_WITH_PEFT,
    logits_of,
    some_tokens,
    tiny_llama,
)
from support.routed_reference import PlainBundle, Weights, routed
from support.scopes import (
    MAX_ERROR,
    PROMPTS,
    SCOPES,
    answers,
    by_prompt,
    by_token,
    expected_logits,
    loaded,
)

pytestmark = [
    LOADS_UNFITTED,
    LOADS_WITH_PEFT,
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
]


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
