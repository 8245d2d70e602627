"""An adapter beside a base: what does not fit is found, what was renamed is not held against it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from meteora_registry.registry.workflows.validation import ValidateOptions, validate
from meteora_registry.schemas.report import Outcome, Purpose
from support.adapters import AdapterFiles
from support.models import make_adapter, save_base, tiny_gpt2, tiny_llama

OPTIONS = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
LAYER = "base_model.model.model.layers.0.self_attn."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tiny_llama(), tmp_path_factory.mktemp("base"))


@pytest.fixture
def files(tmp_path: Path) -> AdapterFiles:
    return AdapterFiles.read(make_adapter(tiny_llama, tmp_path / "made", seed=1, base="org/base", **OPTIONS))


def codes_against(base: Path, files: AdapterFiles, folder: Path) -> list[str]:
    report = validate([files.write(folder)], ValidateOptions(base=str(base), purpose=Purpose.FUSE))
    return sorted({finding.code for finding in report.adapters[0].findings})


def test_fitting_adapter_has_no_findings(base: Path, files: AdapterFiles, tmp_path: Path) -> None:
    assert codes_against(base, files, tmp_path / "a") == []
    assert codes_against(base / "config.json", files, tmp_path / "a") == []


def test_layer_that_the_base_lacks_is_found(base: Path, files: AdapterFiles, tmp_path: Path) -> None:
    for factor, shape in (("A", (4, 32)), ("B", (32, 4))):
        name = f"base_model.model.model.layers.7.self_attn.q_proj.lora_{factor}.weight"
        files.tensors[name] = torch.ones(shape)
    report = validate([files.write(tmp_path / "a")], ValidateOptions(base=str(base)))
    found = [each for each in report.adapters[0].findings if each.code == "MR501"]
    assert [each.found for each in found] == ["`model.layers.7.self_attn.q_proj`: the base has fewer layers"]
    assert report.outcome is Outcome.REFUSED


def test_prefix_of_a_language_model_is_named(base: Path, files: AdapterFiles, tmp_path: Path) -> None:
    files.rename("base_model.model.model.", "base_model.model.language_model.model.")
    report = validate([files.write(tmp_path / "a")], ValidateOptions(base=str(base)))
    found = next(each for each in report.adapters[0].findings if each.code == "MR501")
    assert found.found == (
        "`language_model.model.layers.0.self_attn.q_proj`: the base has it without `language_model.`"
    )


def test_other_shape_is_found(base: Path, files: AdapterFiles, tmp_path: Path) -> None:
    files.tensors = {
        name: tensor.repeat(1, 2) if "lora_A" in name else tensor for name, tensor in files.tensors.items()
    }
    assert codes_against(base, files, tmp_path / "a") == ["MR502"]


def test_partial_coverage_and_wrong_flag_are_noted(base: Path, files: AdapterFiles, tmp_path: Path) -> None:
    for factor in "AB":
        del files.tensors[f"base_model.model.model.layers.1.self_attn.q_proj.lora_{factor}.weight"]
    files.config["fan_in_fan_out"] = True
    assert codes_against(base, files, tmp_path / "a") == ["MR312", "MR505", "MR507"]


def test_resized_vocabulary_is_found(base: Path, files: AdapterFiles, tmp_path: Path) -> None:
    files.tensors["base_model.model.lm_head.weight"] = torch.ones(99, 32)
    assert codes_against(base, files, tmp_path / "a") == ["MR323", "MR506"]


def test_embedding_is_no_linear_layer(base: Path, files: AdapterFiles, tmp_path: Path) -> None:
    for factor, shape in (("A", (4, 64)), ("B", (32, 4))):
        files.tensors[f"base_model.model.model.norm.lora_{factor}.weight"] = torch.ones(shape)
    assert "MR503" in codes_against(base, files, tmp_path / "a")


def test_conv1d_is_told_from_linear(tmp_path: Path) -> None:
    base = save_base(tiny_gpt2(), tmp_path / "base")
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    files = AdapterFiles.read(make_adapter(tiny_gpt2, tmp_path / "made", seed=1, base="org/base", **options))
    assert codes_against(base, files, tmp_path / "a") == []
    files.config["fan_in_fan_out"] = False
    assert codes_against(base, files, tmp_path / "a") == ["MR507"]


def test_tied_output_layer_is_found(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        tie_word_embeddings=True, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(tmp_path / "base")
    names = {f"base_model.model.lm_head.lora_{factor}.weight" for factor in "AB"}
    tensors = {name: torch.ones(4, 32) if "lora_A" in name else torch.ones(64, 4) for name in names}
    lora = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["lm_head"]}
    codes = codes_against(tmp_path / "base", AdapterFiles(lora, tensors), tmp_path / "a")
    assert codes == ["MR141", "MR324", "MR508"]


def test_old_names_of_a_renamed_architecture_are_noted(files: AdapterFiles, tmp_path: Path) -> None:
    text = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=32,
        patch_size=16,
    )  # fmt: skip
    config = LlavaConfig(
        text_config=text, vision_config=vision, architectures=["LlavaForConditionalGeneration"]
    )
    config.save_pretrained(tmp_path / "base")
    files.rename("base_model.model.model.", "base_model.model.language_model.model.")
    report = validate([files.write(tmp_path / "a")], ValidateOptions(base=str(tmp_path / "base")))
    (found,) = report.adapters[0].findings
    assert (found.code, found.found, found.expected) == (
        "MR504",
        "4 modules under old names, such as `language_model.model.layers.0.self_attn.q_proj`",
        "`model.language_model.layers.0.self_attn.q_proj`",
    )


def test_base_that_is_only_a_name_leaves_the_answer_open(files: AdapterFiles, tmp_path: Path) -> None:
    report = validate([files.write(tmp_path / "a")], ValidateOptions(base="org/base"))
    assert report.outcome is Outcome.INCONCLUSIVE
    assert report.adapters[0].unchecked == (
        "modules and shapes: `org/base` is neither a folder of this machine nor in the Hub cache",
    )
