"""Segments that are decided by the gates of a few early layers: as defined, and no later layer is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from meteora_registry.runtime import route_as, routing
from support.bundles import write_bundle
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT, logits_of, make_llama_adapters, tiny_llama
from support.routed_reference import PlainBundle, base_evidence
from support.scopes import MAX_ERROR, PROMPTS, answers, expected_logits

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]

EVIDENCE = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evidence")
    adapters = make_llama_adapters(folder)
    return write_bundle(folder / "bundle", adapters, temperature=0.5, scope="segment", evidence=EVIDENCE)


@pytest.fixture
def model(bundle: Path) -> PeftModel:
    return PeftModel.from_pretrained(tiny_llama(), bundle)


def decode(model: nn.Module, prompt: list[int], answer: list[int]) -> Tensor:
    """Return the logits of a prompt and, token by token, of what follows it."""
    with torch.no_grad():
        out = model(torch.tensor([prompt]), use_cache=True)
        found = [out.logits]
        for token in answer:
            found.append(model(torch.tensor([[token]]), past_key_values=out.past_key_values).logits)
    return torch.cat(found, dim=1)


def test_prompt_and_answer_are_served_as_these_gates_decide(bundle: Path, model: PeftModel) -> None:
    prompt, answer = [3, 5, 7, 30, 31, 32], [33, 8, 9, 4]
    expected = expected_logits("segment", bundle, torch.tensor([prompt + answer]), len(prompt))
    assert (decode(model, prompt, answer) - expected).abs().max() < MAX_ERROR


def test_other_gates_would_decide_otherwise(bundle: Path) -> None:
    # Without this the test above could not tell which gates were read.
    plain = PlainBundle(bundle)
    by_few = base_evidence(tiny_llama(), plain, PROMPTS[0])
    plain.config["gate"]["evidence"] = None
    assert (base_evidence(tiny_llama(), plain, PROMPTS[0]) - by_few).abs().max() > 0.1


def count_layers(model: nn.Module) -> list[int]:
    ran: list[int] = []
    for place, layer in enumerate(model.get_submodule("base_model.model.model.layers").children()):
        layer.register_forward_hook(lambda *_, place=place: ran.append(place))
    return ran


def test_plain_base_runs_no_later_layer_in_prompt_and_answer(model: PeftModel) -> None:
    ran = count_layers(model)
    decode(model, [3, 5, 7], [8, 9])
    # Of each pass: the plain base's first layer, then the routed model's two.
    assert ran == [0, 0, 1] * 3


def test_answers_in_a_batch_and_in_a_beam_search_are_those_of_each_alone(model: PeftModel) -> None:
    for options in ({}, {"num_beams": 3}):
        alone = [answers(model, [prompt], **options)[0] for prompt in PROMPTS]
        assert answers(model, PROMPTS, **options) == alone


def test_cropped_cache_goes_on_as_if_nothing_had_followed(model: PeftModel) -> None:
    with torch.no_grad():
        straight = model(torch.tensor([PROMPTS[0]]), use_cache=True).past_key_values
        expected = logits_of(model, torch.tensor([[40, 41]]), past_key_values=straight)
        cache = model(torch.tensor([PROMPTS[0]]), use_cache=True).past_key_values
        logits_of(model, torch.tensor([[5, 6, 7]]), past_key_values=cache)
        cache.crop(-3)
        found = logits_of(model, torch.tensor([[40, 41]]), past_key_values=cache)
    assert (found - expected).abs().max() < MAX_ERROR


def test_decisions_for_requests_read_the_same_gates(bundle: Path, model: PeftModel) -> None:
    evidence = base_evidence(tiny_llama(), PlainBundle(bundle), PROMPTS[0]).mean(dim=0)
    with route_as(model, scope="prompt", top_k=1), routing(model) as record:
        logits_of(model, torch.tensor([PROMPTS[0]]))
    (decision,) = record.decisions
    assert decision.members == (PlainBundle(bundle).members[int(evidence.argmax())],)
    assert decision.confidence == pytest.approx(float(evidence.max().exp()), rel=1e-4)


def test_saved_model_reads_the_same_gates(bundle: Path, model: PeftModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    tokens = torch.tensor([PROMPTS[0]])
    assert logits_of(again, tokens).equal(logits_of(model, tokens))
