"""Adapters on a base that they were not made for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from support.evidence import OPTIONS, VISIBLE, difference, good_files, load, lose, save, trained
from support.models import logits_of, tiny_llama

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


@pytest.mark.rule("MR602")
def test_adapter_on_another_base_of_equal_shapes_is_silently_wrong(tmp_path: Path) -> None:
    """Shapes agree, and nothing the adapter learned applies."""
    model = trained(LoraConfig(**OPTIONS), tiny_llama())
    save(model, tmp_path)
    assert difference(logits_of(load(tmp_path, deeper_llama(2, seed=1))), logits_of(model)) > VISIBLE
