from __future__ import annotations

import pytest

from meteora_registry.inspection.keys import FactorKey, TensorKind, classify, name_format, parse_key

MODULE = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "marks"),
    [
        (f"base_model.model.{MODULE}.lora_A.weight", ()),
        (f"base_model.model.{MODULE}.lora_A.default.weight", (".default",)),
        (f"{MODULE}.lora_A.weight", ("no prefix",)),
        (f"module.base_model.model.{MODULE}.lora_A.weight", ("module.",)),
        (f"_orig_mod.base_model.model.{MODULE}.lora_A.weight", ("_orig_mod.",)),
        (f"base_model.model._orig_mod.{MODULE}.lora_A.weight", ("_orig_mod.",)),
        (
            "_fsdp_wrapped_module.base_model.model.model.layers.0._fsdp_wrapped_module.self_attn.q_proj.lora_A.weight",
            ("_fsdp_wrapped_module.",),
        ),
        (f"base_model.model.base_model.model.{MODULE}.lora_A.weight", ("doubled base_model.model.",)),
        (f"base_model.model.module.{MODULE}.lora_A.weight", ("module.",)),
    ],
)
def test_known_marks_are_taken_out_exactly(name: str, marks: tuple[str, ...]) -> None:
    assert parse_key(name) == FactorKey(MODULE, "A", marks)


def test_module_within_a_path_stays() -> None:
    key = parse_key("base_model.model.encoder.module.q.lora_B.weight")
    assert key == FactorKey("encoder.module.q", "B", ())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (f"base_model.model.{MODULE}.lora_B.weight", TensorKind.FACTOR),
        ("base_model.model.model.embed_tokens.lora_embedding_A", TensorKind.EMBEDDING_FACTOR),
        (f"base_model.model.{MODULE}.lora_magnitude_vector", TensorKind.MAGNITUDE),
        (f"base_model.model.{MODULE}.lora_magnitude_vector.default.weight", TensorKind.MAGNITUDE),
        (f"base_model.model.{MODULE}.lora_B.bias", TensorKind.FACTOR_BIAS),
        ("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", TensorKind.TOKENS),
        (f"base_model.model.{MODULE}.lora_diag", TensorKind.VARIANT),
        ("base_model.model.experts.base_layer.lora_A.weight", TensorKind.FACTOR),
        (f"base_model.model.{MODULE}.lora_monteclora_sampler.theta", TensorKind.VARIANT),
        (f"base_model.model.{MODULE}.lora_A.sft.weight", TensorKind.MISNAMED),
        ("base_model.model.score.weight", TensorKind.FULL_WEIGHT),
        ("base_model.model.score.bias", TensorKind.FULL_BIAS),
        ("prompt_embeddings", TensorKind.UNKNOWN),
        ("lora_unet_down_blocks_0.lora_down.weight", TensorKind.FOREIGN),
    ],
)
def test_every_name_has_one_kind(name: str, kind: TensorKind) -> None:
    assert classify(name) is kind


@pytest.mark.parametrize(
    ("name", "tool"),
    [
        ("lora_unet_down_blocks_0_attn1_to_q.lora_down.weight", "kohya"),
        ("lora_te1_text_model.alpha", "kohya"),
        ("down_blocks.0.attn1.processor.to_q_lora.down.weight", "kohya or old diffusers"),
        ("down_blocks.0.attn1.to_q.lora.down.weight", "kohya or old diffusers"),
        ("diffusion_model.blocks.0.q.lora_A.weight", "ComfyUI"),
        ("unet.down_blocks.0.attn1.to_q.lora_A.weight", "diffusers"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "diffusers"),
        ("transformer.h.0.attn.c_attn.lora_A.weight", None),
        ("model.layers.0.self_attn.q_proj.lora_a", "MLX"),
        ("x.hada_w1_a", "LyCORIS"),
        ("base_model.model.l.q_proj.meteora_A", "MeteoRA bundle"),
        ("base_model.model.l.q_proj.moe_gate.weight", "MeteoRA bundle"),
    ],
)
def test_foreign_names_are_named(name: str, tool: str | None) -> None:
    assert name_format(name) == tool
