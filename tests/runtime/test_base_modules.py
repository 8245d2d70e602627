"""The base's modules on the meta device, and the names that transformers changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from meteora_registry.runtime.active_bundles import force_adapter
from meteora_registry.runtime.base_modules import ModuleShape, module_shapes, read_base, resolve_paths
from meteora_registry.schemas.errors import SourceUnreadable, UsageError
from support.bundles import read_factors, write_bundle
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT, make_adapter, tiny_gpt2, tiny_llama

OLD = "language_model.model.layers.1.self_attn.q_proj"
PRESENT = "model.language_model.layers.1.self_attn.q_proj"


def tiny_llava_config() -> LlavaConfig:
    return LlavaConfig(
        text_config=LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
        ),
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=16,
        ),
        architectures=["LlavaForConditionalGeneration"],
    )


def test_shapes_are_read_without_memory(tmp_path: Path) -> None:
    tiny_llama().config.save_pretrained(tmp_path)
    base = read_base(tmp_path)
    assert {parameter.device.type for parameter in base.parameters()} == {"meta"}
    shapes = module_shapes(base)
    assert shapes["model.layers.1.self_attn.k_proj"] == ModuleShape("linear", 32, 16)
    assert shapes["model.layers.0.mlp.down_proj"] == ModuleShape("linear", 48, 32)
    assert "model.layers.0.mlp" not in shapes


def test_shapes_of_conv1d_are_input_then_output() -> None:
    shapes = module_shapes(read_base(tiny_gpt2().config))
    assert shapes["transformer.h.0.attn.c_attn"] == ModuleShape("conv1d", 32, 96)


def test_old_paths_of_a_renamed_architecture_are_resolved() -> None:
    base = read_base(tiny_llava_config())
    found = resolve_paths([OLD, PRESENT, "language_model.model.layers.7.self_attn.q_proj"], base)
    assert found == {OLD: PRESENT, PRESENT: PRESENT}
    assert module_shapes(base)[PRESENT] == ModuleShape("linear", 32, 32)


def test_paths_of_an_architecture_that_kept_its_names_stay() -> None:
    base = read_base(tiny_llama().config)
    assert resolve_paths(["model.layers.0.mlp.up_proj", "lm_head"], base) == {
        "model.layers.0.mlp.up_proj": "model.layers.0.mlp.up_proj",
        "lm_head": "lm_head",
    }


@LOADS_UNFITTED
@LOADS_WITH_PEFT
def test_bundle_under_present_names_loads_on_a_renamed_architecture(tmp_path: Path) -> None:
    def make_llava() -> LlavaForConditionalGeneration:
        torch.manual_seed(0)
        return LlavaForConditionalGeneration(tiny_llava_config()).eval()

    adapter = make_adapter(
        make_llava, tmp_path / "a", seed=1, r=4, target_modules=r"model\.language_model.*\.(q_proj|v_proj)"
    )
    assert PRESENT in read_factors(adapter)
    bundle = write_bundle(tmp_path / "bundle", {"a": adapter}, top_k=1)
    alone, routed = make_llava(), make_llava()
    alone.load_adapter(adapter)
    routed.load_adapter(bundle)
    tokens = torch.arange(6)[None]
    with torch.no_grad(), force_adapter(routed, "a"):
        torch.testing.assert_close(routed(tokens).logits, alone(tokens).logits)


def test_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable, match="is not a base model: ") as caught:
        read_base(tmp_path)
    assert caught.value.hint == "name the folder that holds the base's `config.json`"


def test_architecture_that_transformers_lacks_is_refused(tmp_path: Path) -> None:
    config = tiny_llama().config.to_dict() | {"architectures": ["EvilForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"the base is a `EvilForCausalLM`, which transformers \S+ does not"):
        read_base(tmp_path)
