"""Adapters on a base that they were not made for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from meteora_registry.fuser.bundle_writer import write_bundle
from support.evidence import (
    OPTIONS,
    VISIBLE,
    difference,
    good_files,
    good_logits,
    load,
    lose,
    save,
    trained,
)
from support.members import plan_of, read_member
from support.models import logits_of, tiny_llama
from support.verdict_kinds import SEQ2SEQ, answer, base_answer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def deeper_llama(layers: int, *, seed: int = 0, **changes: int) -> PreTrainedModel:
    values = tiny_llama().config.to_dict() | {"num_hidden_layers": layers} | changes
    values.pop("layer_types", None)
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**values)).eval()


@pytest.mark.rule("MR501")
def test_modules_that_the_base_lacks_are_dropped(tmp_path: Path) -> None:
    """PEFT loads two layers of three without an error."""
    files = save(trained(LoraConfig(**OPTIONS), deeper_llama(3)), tmp_path / "three")
    dropped = logits_of(load(tmp_path / "three", tiny_llama()))
    files.tensors = {name: each for name, each in files.tensors.items() if ".layers.2." not in name}
    files.write(tmp_path / "two")
    assert torch.equal(dropped, logits_of(load(tmp_path / "two", tiny_llama())))


@pytest.mark.rule("MR502", "MR601")
def test_shapes_of_another_base_are_a_raw_error(tmp_path: Path) -> None:
    """No product of these factors fits."""
    save(trained(LoraConfig(**OPTIONS), deeper_llama(2, hidden_size=64)), tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        load(tmp_path, tiny_llama())


@pytest.mark.rule("MR503")
def test_module_that_is_not_linear_cannot_be_adapted(tmp_path: Path) -> None:
    """A normalisation has no product to add to."""
    files = good_files()
    files.rename("self_attn.q_proj", "input_layernorm")
    with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
        lose(files, tiny_llama())


@pytest.mark.rule("MR506")
def test_resized_vocabulary_is_a_raw_error(tmp_path: Path) -> None:
    """The saved output layer does not fit the base's."""
    options = LoraConfig(modules_to_save=["lm_head"], **OPTIONS)
    save(trained(options, deeper_llama(2, vocab_size=65)), tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        load(tmp_path, tiny_llama())


@pytest.mark.rule("MR509")
def test_container_cannot_be_adapted(tmp_path: Path) -> None:
    """An expression that also matches the module around the layers stops PEFT."""
    files = good_files()
    files.config["target_modules"] = ".*self_attn.*"
    files.write(tmp_path)
    with pytest.raises(ValueError, match="not supported"):
        load(tmp_path)


@pytest.mark.rule("MR510")
def test_declared_module_without_tensors_may_start_random(tmp_path: Path) -> None:
    """PEFT fills what the file lacks."""
    files = good_files()
    files.config |= {"target_modules": ["q_proj", "v_proj", "o_proj"], "init_lora_weights": False}
    files.write(tmp_path)
    assert difference(logits_of(load(tmp_path)), good_logits()) > VISIBLE


@pytest.mark.rule("MR511")
def test_saved_module_without_weights_is_a_raw_error(tmp_path: Path) -> None:
    """PEFT asks the file for each of them."""
    files = good_files()
    files.config["modules_to_save"] = ["lm_head"]
    files.write(tmp_path)
    with pytest.raises(KeyError, match="lm_head"):
        load(tmp_path)


@pytest.mark.rule("MR512")
def test_module_that_two_parts_share_is_adapted_in_neither(tmp_path: Path) -> None:
    """The encoder and the decoder keep the embedding that they had."""
    options = LoraConfig(r=4, lora_alpha=20, target_modules=["shared"])
    save(trained(options, SEQ2SEQ.model()), tmp_path)
    assert torch.equal(answer(load(tmp_path, SEQ2SEQ.model()), SEQ2SEQ), base_answer(SEQ2SEQ))


@pytest.mark.rule("MR609")
def test_adapter_of_the_body_does_nothing_on_the_whole_model(tmp_path: Path) -> None:
    """Its modules have other paths there."""
    options = LoraConfig(task_type="FEATURE_EXTRACTION", **OPTIONS)
    save(trained(options, tiny_llama().model), tmp_path)
    assert torch.equal(logits_of(load(tmp_path)), logits_of(tiny_llama()))


@pytest.mark.rule("MR608")
def test_equal_members_get_equal_rows_of_the_gate(tmp_path: Path) -> None:
    """Every token is a tie between them."""
    save(trained(LoraConfig(**OPTIONS), tiny_llama()), tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    members = [read_member(tmp_path / name) for name in ("one", "other")]
    # A plan refuses them, so the gate is computed beside it.
    plan = plan_of(members).model_copy(update={"conflicts": ()})
    (tmp_path / "bundle").mkdir()
    write_bundle(plan, members, tmp_path / "bundle")
    tensors = load_file(tmp_path / "bundle" / "adapter_model.safetensors")
    gates = [tensor for name, tensor in tensors.items() if name.endswith("meteora_gate")]
    assert gates
    assert all(torch.equal(gate[0], gate[1]) for gate in gates)


@pytest.mark.rule("MR602")
def test_adapter_on_another_base_of_equal_shapes_is_silently_wrong(tmp_path: Path) -> None:
    """Shapes agree, and nothing the adapter learned applies."""
    model = trained(LoraConfig(**OPTIONS), tiny_llama())
    save(model, tmp_path)
    assert difference(logits_of(load(tmp_path, deeper_llama(2, seed=1))), logits_of(model)) > VISIBLE
