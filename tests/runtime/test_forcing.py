"""``force_adapter``: one member for every token, and everything as before afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from meteora_registry.runtime import force_adapter, force_tokens, route_as, routing
from meteora_registry.schemas.errors import UsageError
from support.bundles import write_bundle
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT, logits_of, make_adapter, tiny_llama

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forcing")
    members = {
        name: make_adapter(tiny_llama, folder / name, seed=seed, r=4, target_modules=["q_proj", "v_proj"])
        for seed, name in enumerate(("one", "two", "three"))
    }
    return write_bundle(folder / "bundle", members)


def in_peft(bundle: Path) -> nn.Module:
    return PeftModel.from_pretrained(tiny_llama(), bundle)


def in_transformers(bundle: Path) -> nn.Module:
    model = tiny_llama()
    model.load_adapter(bundle)
    return model


every_model = pytest.mark.parametrize(
    "load", [in_peft, in_transformers], ids=["PeftModel", "transformers-model"]
)
Load = Callable[[Path], nn.Module]


def forced_logits(model: nn.Module, name: str) -> Tensor:
    with force_adapter(model, name):
        return logits_of(model)


@every_model
def test_force_ends_with_its_block(bundle: Path, load: Load) -> None:
    model = load(bundle)
    routed = logits_of(model)
    assert not torch.equal(forced_logits(model, "one"), forced_logits(model, "two"))
    assert torch.equal(logits_of(model), routed)


@every_model
def test_nested_force_brings_back_the_outer_one(bundle: Path, load: Load) -> None:
    model = load(bundle)
    one, two = forced_logits(model, "one"), forced_logits(model, "two")
    with force_adapter(model, "one"):
        with force_adapter(model, "two"):
            assert torch.equal(logits_of(model), two)
        assert torch.equal(logits_of(model), one)


@every_model
def test_exception_in_the_block_ends_the_force(bundle: Path, load: Load) -> None:
    model = load(bundle)
    routed = logits_of(model)
    with pytest.raises(KeyError), force_adapter(model, "one"):
        raise KeyError
    assert torch.equal(logits_of(model), routed)


@every_model
def test_unknown_member_is_refused_and_changes_nothing(bundle: Path, load: Load) -> None:
    model = load(bundle)
    routed = logits_of(model)
    with pytest.raises(UsageError) as caught, force_adapter(model, "four"):
        pass
    assert str(caught.value) == "bundle `default` has no member `four`, it has `one`, `two`, `three`"
    assert torch.equal(logits_of(model), routed)


def test_model_without_a_bundle_is_refused() -> None:
    with pytest.raises(UsageError) as caught, force_adapter(tiny_llama(), "one"):
        pass
    assert str(caught.value) == "the model has no active bundle"


def test_forced_member_serves_every_token_of_every_module(bundle: Path) -> None:
    model = in_peft(bundle)
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    x = torch.zeros(2, 3, 32)
    with force_adapter(model, "three"), routing(model) as record:
        layer(x)
    found = record.modules["model.layers.0.self_attn.q_proj"]
    assert torch.equal(found.selection, torch.full((1, 6, 1), 2))
    assert torch.equal(found.weights, torch.ones(1, 6, 1))


def test_force_does_nothing_while_adapters_are_disabled(bundle: Path) -> None:
    model = in_peft(bundle)
    with force_adapter(model, "one"), model.disable_adapter():
        assert torch.equal(logits_of(model), logits_of(tiny_llama()))


@every_model
def test_model_with_hooks_is_not_walked_for_its_bundles(
    load: Load, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(bundle)
    # A part of the model has no hooks, so its layers are looked for.
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    with force_adapter(base.get_submodule("model"), "two"):
        expected = logits_of(model)

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("every module of the model was looked at")

    monkeypatch.setattr(nn.Module, "modules", refuse)
    assert forced_logits(model, "two").equal(expected)


TOKENS = torch.arange(1, 13).reshape(2, 6)
# Of a batch of two sequences; None is the base alone.
GIVEN = [["one", "one", "two", "two", "three", None], [None, "two", "two", "one", "one", "one"]]


def test_every_module_serves_each_token_with_the_member_given_for_it(bundle: Path) -> None:
    model = in_peft(bundle)
    with torch.no_grad(), force_tokens(model, GIVEN), routing(model) as record:
        model(input_ids=TOKENS)
    names = ("one", "two", "three")
    for routed in record.modules.values():
        found = [
            [names[place] if weight else None for place, weight in zip(places, weights, strict=True)]
            for places, weights in zip(
                routed.selection[..., 0].tolist(), routed.weights[..., 0].tolist(), strict=True
            )
        ]
        assert found == GIVEN


@every_model
@pytest.mark.parametrize("name", ["one", None])
def test_one_member_given_for_every_token_is_that_member_forced(
    bundle: Path, load: Load, name: str | None
) -> None:
    model = load(bundle)
    if name is None:
        with torch.no_grad():
            expected = tiny_llama()(input_ids=TOKENS).logits
    else:
        with torch.no_grad(), force_adapter(model, name):
            expected = model(input_ids=TOKENS).logits
    with torch.no_grad(), force_tokens(model, [[name] * 6] * 2):
        found = model(input_ids=TOKENS).logits
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(logits_of(model), logits_of(tiny_llama()))


@pytest.mark.parametrize("scope", ["token", "prompt", "segment"])
def test_passes_behind_a_cache_go_on_where_it_ends(bundle: Path, scope: str) -> None:
    model = in_peft(bundle)
    with torch.no_grad(), route_as(model, scope=scope), force_tokens(model, GIVEN):
        whole = model(input_ids=TOKENS).logits
        begun = model(input_ids=TOKENS[:, :4], use_cache=True)
        rest = model(input_ids=TOKENS[:, 4:], past_key_values=begun.past_key_values, use_cache=True)
    assert torch.allclose(torch.cat([begun.logits, rest.logits], dim=1), whole, atol=1e-5)


def test_tokens_behind_the_given_ones_go_to_who_is_named(bundle: Path) -> None:
    model = in_peft(bundle)
    short = [row[:4] for row in GIVEN]
    whole = [[*row[:4], "three", "three"] for row in GIVEN]
    with torch.no_grad(), force_tokens(model, whole):
        expected = model(input_ids=TOKENS).logits
    with torch.no_grad(), force_tokens(model, short, beyond="three"):
        assert torch.equal(model(input_ids=TOKENS).logits, expected)
        answer = model.generate(input_ids=TOKENS, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert answer.shape == (2, 8)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [["one"] * 6, ["one"] * 5],
            "the members are given for sequences of these lengths: 6, 5; expected one length, at least 1",
        ),
        ([], "the members are given for sequences of these lengths: none; expected one length, at least 1"),
        ([["one"] * 6], "the members of 1 sequences are given, the pass has 2"),
        ([["one"] * 5] * 2, "the members of 5 tokens are given, the pass reads 6"),
        ([["four"] * 6] * 2, "bundle `default` has no member `four`, it has `one`, `two`, `three`"),
    ],
    ids=["unlike", "nothing", "sequences", "tokens", "stranger"],
)
def test_members_that_do_not_fit_the_tokens_are_refused(
    bundle: Path, members: list[list[str]], message: str
) -> None:
    model = in_peft(bundle)
    with pytest.raises(UsageError) as caught, force_tokens(model, members):
        model(input_ids=TOKENS)
    assert str(caught.value) == message


def test_module_called_by_itself_has_no_tokens_given(bundle: Path) -> None:
    model = in_peft(bundle)
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    with force_tokens(model, GIVEN), pytest.raises(UsageError, match="called outside a forward pass"):
        layer(torch.zeros(1, 1, 32))
