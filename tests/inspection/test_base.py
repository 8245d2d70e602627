"""An adapter beside a base: what does not fit is found, what was renamed is not held against it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, Qwen3NextConfig

from meteora_registry.registry.workflows.validation import ValidateOptions, find_adapters, validate
from meteora_registry.schemas.report import Outcome, Purpose
from support.adapters import AdapterFiles, codes_of, inspect_written
from support.models import make_adapter, save_base, tiny_gpt2, tiny_llama

OPTIONS = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
LAYER = "base_model.model.model.layers.0.self_attn."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tiny_llama(), tmp_path_factory.mktemp("base"))


@pytest.fixture
def files(tmp_path: Path) -> AdapterFiles:
    return AdapterFiles.read(make_adapter(tiny_llama, tmp_path / "made", seed=1, base="org/base", **OPTIONS))


def small_text() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip


def small_vision() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=32,
        patch_size=16,
    )  # fmt: skip


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
        "`language_model.model.layers.0.self_attn.q_proj`: the base has it without `language_model.` "
        "(and 3 more places)"
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


def test_text_adapter_on_a_larger_class_of_its_checkpoint_is_refused_for_that(
    files: AdapterFiles, tmp_path: Path
) -> None:
    config = LlavaConfig(
        text_config=small_text(),
        vision_config=small_vision(),
        architectures=["LlavaForConditionalGeneration"],
    )
    config.save_pretrained(tmp_path / "base")
    report = validate([files.write(tmp_path / "a")], ValidateOptions(base=str(tmp_path / "base")))
    (found,) = (each for each in report.adapters[0].findings if each.code == "MR501")
    assert report.outcome is Outcome.REFUSED
    assert (
        "the base has it as `model.language_model.layers.0.self_attn.q_proj`, in another class" in found.found
    )


def test_old_names_of_a_renamed_architecture_are_noted(files: AdapterFiles, tmp_path: Path) -> None:
    config = LlavaConfig(
        text_config=small_text(),
        vision_config=small_vision(),
        architectures=["LlavaForConditionalGeneration"],
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


def test_verdict_survives_a_base_that_cannot_be_looked_at(files: AdapterFiles, tmp_path: Path) -> None:
    folder = files.write(tmp_path / "a")
    for number, text in enumerate(("not JSON", "[]", '{"architectures": ["OwnForCausalLM"]}')):
        base = tmp_path / f"base-{number}"
        base.mkdir()
        (base / "config.json").write_text(text)
        (found,) = validate([folder], ValidateOptions(base=str(base))).adapters
        assert (found.outcome, str(found.verdict)) == (Outcome.INCONCLUSIVE, "sound, fusable"), text
        (reason,) = found.unchecked
        assert reason.startswith("modules and shapes: "), text


@pytest.mark.parametrize("text", [b"{'r': 8}", b"[]", b'"LORA"', b"\xff", b""])
def test_batch_beside_a_base_survives_a_config_that_is_not_an_object(
    text: bytes, base: Path, files: AdapterFiles, tmp_path: Path
) -> None:
    good = files.write(tmp_path / "tree/good")
    files.raw_config = text
    bad = files.write(tmp_path / "tree/bad")
    options = ValidateOptions(base=str(base), purpose=Purpose.FUSE)
    assert [each.outcome for each in validate([bad, good], options).adapters] == [
        Outcome.REFUSED,
        Outcome.ACCEPTED,
    ]


def test_folder_with_weights_and_no_config_is_reported(files: AdapterFiles, tmp_path: Path) -> None:
    files.write(tmp_path / "tree/good")
    alone = files.write(tmp_path / "tree/alone")
    (alone / "adapter_config.json").unlink()
    found = find_adapters([tmp_path / "tree"])
    assert [path.name for path in found] == ["alone", "good"]
    (report, _) = validate(found, ValidateOptions()).adapters
    assert (report.outcome, [each.code for each in report.findings]) == (Outcome.REFUSED, ["MR001"])


def hybrid_base(folder: Path) -> Path:
    """Write the config of a base whose layers are recurrent and attending in turn."""
    Qwen3NextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=8, linear_value_head_dim=8, shared_expert_intermediate_size=16, num_experts=4,
        moe_intermediate_size=16, layer_types=["linear_attention", "full_attention"] * 2,
        architectures=["Qwen3NextForCausalLM"],
    ).save_pretrained(folder)  # fmt: skip
    return folder


def pairs_of(*paths: str) -> dict[str, torch.Tensor]:
    shapes = {"A": (4, 32), "B": (64, 4)}
    names = {f"base_model.model.{path}.lora_{factor}.weight": factor for path in paths for factor in "AB"}
    return {name: torch.ones(shapes[factor]) for name, factor in names.items()}


def test_layers_of_two_kinds_lack_nothing(files: AdapterFiles, tmp_path: Path) -> None:
    files.config["target_modules"] = ["q_proj", "out_proj", "gate_up"]
    attending = [f"model.layers.{number}.self_attn.q_proj" for number in (1, 3)]
    recurrent = [f"model.layers.{number}.linear_attn.out_proj" for number in (0, 2)]
    files.tensors = pairs_of(*attending, *recurrent)
    assert "MR312" not in codes_of(inspect_written(files, tmp_path / "whole"))
    files.tensors = pairs_of(*attending)
    assert "MR312" not in codes_against(hybrid_base(tmp_path / "base"), files, tmp_path / "part")
    files.tensors = pairs_of(attending[0])
    assert "MR312" in codes_against(tmp_path / "base", files, tmp_path / "half")


def test_layers_without_a_module_are_one_finding(files: AdapterFiles, tmp_path: Path) -> None:
    kept = {name: tensor for name, tensor in files.tensors.items() if "layers.0.self_attn.v" not in name}
    files.tensors = kept | {
        name.replace("layers.1", f"layers.{number}"): tensor.clone()
        for name, tensor in kept.items()
        for number in range(2, 9)
        if "layers.1" in name
    }
    (found,) = [each for each in inspect_written(files, tmp_path).findings if each.code == "MR312"]
    assert found.found == "`model.layers.*.self_attn.v_proj` in 8 layers, not in 0"


def test_renaming_noted_for_one_adapter_is_not_noted_for_the_next(
    files: AdapterFiles, tmp_path: Path
) -> None:
    config = LlavaConfig(text_config=small_text(), vision_config=small_vision())
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(tmp_path / "base")
    files.config["target_modules"] = ["q_proj", "v_proj"]
    files.rename("base_model.model.model.", "base_model.model.language_model.model.")
    old = files.write(tmp_path / "old")
    files.rename("language_model.model.", "model.language_model.")
    new = files.write(tmp_path / "new")
    report = validate([old, new], ValidateOptions(base=str(tmp_path / "base")))
    assert [[each.code for each in one.findings] for one in report.adapters] == [["MR504"], []]
