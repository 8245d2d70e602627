"""The decision about a request from the first layers of the base: the same as the whole model's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from meteora_registry.bundle import Bundle
from meteora_registry.runtime import Decision, routing
from meteora_registry.runtime.decider import RequestDecider, open_decider
from meteora_registry.schemas.errors import BundleRefused, SourceUnreadable
from support.bundles import write_bundle
from support.models import LOADS_UNFITTED, make_adapter, save_base, tiny_gpt2, tiny_llama
from support.scopes import answers
from support.task_data import tiny_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
BUNDLES = [
    path for path in sorted(GOLDEN.glob("*/bundles/*")) if Bundle.open(path).config.gate.scope == "prompt"
]
PROMPTS = [[5, 6, 7, 8, 9], [30, 31, 3, 40], [2, 20, 21, 22, 50, 51, 52, 9, 9, 8], [60]]
GATES: dict[str, dict[str, Any]] = {
    "linear": {"top_k": 1},
    "bias": {"gate_bias": True},
    "absolute": {"gate_kind": "absolute"},
    "normalised": {"gate_kind": "normalised", "temperature": 0.3},
    "sources": {"sources": {"model.layers.1.self_attn.v_proj": "model.layers.1.self_attn.q_proj"}},
    "abstaining": {"abstain": 0.6},
    "early": {"evidence": ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]},
}

pytestmark = LOADS_UNFITTED


def decisions_of(base: PreTrainedModel, bundle: Path, prompts: list[list[int]]) -> list[Decision]:
    """Return what the whole model decides for each prompt."""
    model = PeftModel.from_pretrained(base, bundle).eval()
    found = []
    for prompt in prompts:
        with routing(model) as record:
            answers(model, [prompt], tokens=1)
        found += record.decisions
    return found


def assert_alike(found: list[Decision], expected: list[Decision]) -> None:
    """Pass if the same members serve with the same weights and confidence."""
    assert [each.members for each in found] == [each.members for each in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)
        assert one.weights == pytest.approx(other.weights, abs=1e-5)


def save_whole(model: PreTrainedModel, folder: Path) -> Path:
    """Return a base with a tokenizer."""
    tiny_tokenizer().save_pretrained(save_base(model, folder))
    return folder


def two_members(make_base: Callable[[], PreTrainedModel], folder: Path, **options: Any) -> dict[str, Path]:
    """Return two adapters of a base."""
    return {
        name: make_adapter(make_base, folder / name, seed=seed, r=4, **options)
        for seed, name in enumerate(["one", "two"])
    }


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a base of six layers and two members on two of its modules."""
    folder = tmp_path_factory.mktemp("llama")
    save_whole(tiny_llama(layers=6), folder / "base")
    two_members(lambda: tiny_llama(layers=6), folder, target_modules=["q_proj", "v_proj"])
    return folder


def llama_bundle(llama: Path, folder: Path, **options: Any) -> Path:
    """Return a bundle of the two members that decides by the prompt."""
    options = {"scope": "prompt", "top_k": 2} | options
    return write_bundle(folder, {name: llama / name for name in ("one", "two")}, **options)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: f"{path.parents[1].name}-{path.name}")
def test_golden_bundle_is_decided_as_by_its_whole_model(bundle: Path) -> None:
    base = bundle.parents[1] / "base"
    found = open_decider(bundle, base, dtype=torch.float32).decide(PROMPTS)
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert_alike(found, decisions_of(whole, bundle, PROMPTS))


@pytest.mark.parametrize("options", GATES.values(), ids=GATES)
def test_gate_of_each_form_decides_as_in_the_whole_model(
    llama: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    bundle = llama_bundle(llama, tmp_path / "bundle", **options)
    found = open_decider(bundle, llama / "base").decide(PROMPTS)
    whole = AutoModelForCausalLM.from_pretrained(llama / "base")
    assert_alike(found, decisions_of(whole, bundle, PROMPTS))


def test_base_with_absolute_positions_decides_as_the_whole_model(tmp_path: Path) -> None:
    save_whole(tiny_gpt2(layers=4), tmp_path / "base")
    members = two_members(
        lambda: tiny_gpt2(layers=4), tmp_path, target_modules=["c_attn"], fan_in_fan_out=True
    )
    bundle = write_bundle(
        tmp_path / "bundle",
        members,
        scope="prompt",
        evidence=["transformer.h.0.attn.c_attn", "transformer.h.2.attn.c_attn"],
    )
    decider = open_decider(bundle, tmp_path / "base")
    assert decider.base.layers == 3
    assert_alike(decider.decide(PROMPTS), decisions_of(tiny_gpt2(layers=4), bundle, PROMPTS))


def test_module_outside_the_layers_is_read_in_the_whole_base(tmp_path: Path) -> None:
    save_whole(tiny_llama(), tmp_path / "base")
    members = two_members(tiny_llama, tmp_path, target_modules=["q_proj", "lm_head"])
    bundle = write_bundle(tmp_path / "bundle", members, scope="prompt")
    decider = open_decider(bundle, tmp_path / "base")
    assert (decider.base.layers, type(decider.base.model).__name__) == (None, "LlamaForCausalLM")
    assert_alike(decider.decide(PROMPTS), decisions_of(tiny_llama(), bundle, PROMPTS))


def test_later_layers_and_the_head_are_never_read(llama: Path, tmp_path: Path) -> None:
    bundle = llama_bundle(llama, tmp_path / "bundle", evidence=["model.layers.1.self_attn.v_proj"])
    base = save_whole(tiny_llama(layers=6), tmp_path / "base")
    make_later_tensors_unreadable(base)
    with pytest.raises(SafetensorError, match="Dtype not understood"):
        AutoModelForCausalLM.from_pretrained(base)
    decider = open_decider(bundle, base)
    assert decider.base.layers == 2
    assert decider.decide(PROMPTS) == open_decider(bundle, llama / "base").decide(PROMPTS)


def make_later_tensors_unreadable(base: Path) -> None:
    """Give every tensor that is not of the first two layers an element type that torch does not have."""
    tensors = load_file(base / "model.safetensors")
    early = re.compile(r"model\.(embed_tokens|norm|layers\.[01])\.")
    first = {name: tensor for name, tensor in tensors.items() if early.match(name)}
    later = sorted(tensors.keys() - first.keys())
    save_file(first, base / "first.safetensors", metadata={"format": "pt"})
    entries = {
        name: {"dtype": "F6_E2M3", "shape": [4, 4], "data_offsets": [place * 12, place * 12 + 12]}
        for place, name in enumerate(later)
    }
    header = json.dumps({"__metadata__": {"format": "pt"}} | entries).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(12 * len(entries))
    (base / "later.safetensors").write_bytes(data)
    (base / "model.safetensors").unlink()
    weights = dict.fromkeys(first, "first.safetensors") | dict.fromkeys(entries, "later.safetensors")
    index = {"metadata": {"total_size": 0}, "weight_map": weights}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))


def test_prompts_of_a_batch_do_not_change_each_other(llama: Path, tmp_path: Path) -> None:
    decider = open_decider(llama_bundle(llama, tmp_path / "bundle"), llama / "base")
    with ThreadPoolExecutor(4) as pool:
        alone = [each for [each] in pool.map(decider.decide, [[prompt] for prompt in PROMPTS * 3])]
    together = decider.decide(PROMPTS * 3)
    assert [each.members for each in alone] == [each.members for each in together]
    assert [each.confidence for each in alone] == pytest.approx(
        [each.confidence for each in together], abs=1e-5
    )


def test_prompt_without_tokens_finds_all_members_equally_likely(llama: Path, tmp_path: Path) -> None:
    decider = open_decider(llama_bundle(llama, tmp_path / "bundle"), llama / "base")
    assert decider.decide([]) == []
    assert [each.confidence for each in decider.decide([[]])] == pytest.approx([0.5])


@pytest.mark.parametrize("scope", ["token", "layer", "prompt+token", "segment"])
def test_scope_that_decides_more_than_once_for_a_request_is_refused(
    llama: Path, tmp_path: Path, scope: str
) -> None:
    bundle = llama_bundle(llama, tmp_path / "bundle", scope=scope)
    with pytest.raises(BundleRefused, match=re.escape(f"the bundle's scope is `{scope}`, expected `prompt`")):
        open_decider(bundle, llama / "base")


def test_base_of_other_shapes_is_refused(llama: Path, tmp_path: Path) -> None:
    bundle = llama_bundle(llama, tmp_path / "bundle")
    save_whole(tiny_llama(), tmp_path / "base")
    with pytest.raises(BundleRefused, match=r"has no module `model\.layers\.2"):
        open_decider(bundle, tmp_path / "base")


def test_base_without_a_needed_tensor_is_refused(llama: Path, tmp_path: Path) -> None:
    bundle = llama_bundle(llama, tmp_path / "bundle")
    base = save_whole(tiny_llama(layers=6), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        SourceUnreadable, match=r"lack 1 tensors of its layers, the first `layers\.0\.mlp\.up_proj"
    ):
        open_decider(bundle, base)


def test_gate_that_is_not_finite_is_refused(llama: Path, tmp_path: Path) -> None:
    bundle = llama_bundle(llama, tmp_path / "bundle")
    weights = bundle / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors["base_model.model.model.layers.0.self_attn.q_proj.meteora_gate"][0, 0] = torch.nan
    save_file(tensors, weights, metadata={"meteora_format": "1"})
    with pytest.raises(BundleRefused, match="not finite"):
        open_decider(bundle, llama / "base")


def test_texts_are_encoded_as_the_loaded_model_reads_them(llama: Path, tmp_path: Path) -> None:
    decider: RequestDecider = open_decider(llama_bundle(llama, tmp_path / "bundle"), llama / "base")
    assert decider.encode("w1 w2") == tiny_tokenizer()("w1 w2")["input_ids"]


def test_bounds_of_the_base_are_known(llama: Path, tmp_path: Path) -> None:
    decider = open_decider(llama_bundle(llama, tmp_path / "bundle"), llama / "base")
    assert (decider.vocabulary, decider.context) == (64, 64)
