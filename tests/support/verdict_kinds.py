"""Tiny base models of every kind that the verdict matrix crosses with PEFT's options."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from .models import VOCABULARY, some_tokens

_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
IMAGE_TOKEN = 60


@dataclass(frozen=True)
class Kind:
    """A base model and the names of the modules that the option cases need.

    ``group`` is the kind that the tables speak of; ``experts`` is a module path below a layer that
    holds stacked expert parameters.
    """

    name: str
    group: str
    build: Callable[[], PreTrainedModel]
    attention: tuple[str, ...] = ("q_proj", "v_proj")
    feed_forward: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    output: str = "o_proj"
    head: str | None = "lm_head"
    embedding: str = "embed_tokens"
    norm: str = "input_layernorm"
    layers: str | None = "layers"
    one_path: str = "model.layers.1.self_attn.q_proj"
    task: str | None = "CAUSAL_LM"
    experts: str | None = None

    def model(self) -> PreTrainedModel:
        """Return a fresh copy of the base; its weights are the same at every call."""
        return deepcopy(_built(self))

    def inputs(self) -> dict[str, Tensor]:
        """Return what one forward pass takes: three sequences, for a vision-language model an image each."""
        tokens = some_tokens()
        if self.group == "seq2seq":
            return {"input_ids": tokens, "decoder_input_ids": some_tokens(length=5, seed=6)}
        if self.group != "vision-language":
            return {"input_ids": tokens}
        images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(7))
        if self.layers is None:
            return {"pixel_values": images}
        tokens = tokens.clamp(max=IMAGE_TOKEN - 1)
        tokens[:, 1:5] = IMAGE_TOKEN
        return {"input_ids": tokens, "pixel_values": images, "token_type_ids": (tokens == IMAGE_TOKEN).long()}


@cache
def _built(kind: Kind) -> PreTrainedModel:
    torch.manual_seed(0)
    model = kind.build().eval()
    with torch.no_grad():
        # Fresh norms and routers are ones and near zero; whatever an adapter replaces must show.
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    return model


@cache
def saved_base(kind: Kind, folder: Path) -> Path:
    """Write the base's config, which is all that a verdict may look at."""
    _built(kind).config.save_pretrained(folder / kind.name)
    return folder / kind.name


def answer(model: nn.Module, kind: Kind) -> Tensor:
    """Return what one forward pass gives: logits, or the last hidden state of a model without a head."""
    torch.manual_seed(0)
    with torch.no_grad():
        result = model.eval()(**kind.inputs())
    names = ("logits", "pooler_output", "last_hidden_state")
    found: Tensor = next(value for name in names if (value := getattr(result, name, None)) is not None)
    return found.float()


@cache
def base_answer(kind: Kind) -> Tensor:
    """Return what the base gives without any adapter."""
    return answer(kind.model(), kind)


def text_model(name: str, **options: Any) -> Callable[[], PreTrainedModel]:
    """Return a builder of a text model: the class and config of this name with the common sizes."""
    stem = name.removesuffix("ForCausalLM").removesuffix("Model")

    def build() -> PreTrainedModel:
        config = getattr(transformers, f"{stem}Config")(**_TEXT | options)
        config.architectures = [name]
        model: PreTrainedModel = getattr(transformers, name)(config)
        return model

    return build


def _encoder(name: str, **options: Any) -> Callable[[], PreTrainedModel]:
    def build() -> PreTrainedModel:
        sizes = {key: value for key, value in _TEXT.items() if "key_value" not in key and "token" not in key}
        config = transformers.BertConfig(**sizes, pad_token_id=0, **options)
        config.architectures = [name]
        model: PreTrainedModel = getattr(transformers, name)(config)
        return model

    return build


def _gpt2() -> PreTrainedModel:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=None,
        eos_token_id=None,
        architectures=["GPT2LMHeadModel"],
    )
    return transformers.GPT2LMHeadModel(config)


def _t5() -> PreTrainedModel:
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        tie_word_embeddings=False,
        architectures=["T5ForConditionalGeneration"],
    )
    return transformers.T5ForConditionalGeneration(config)


def _gemma3() -> PreTrainedModel:
    config = transformers.Gemma3Config(
        text_config=_TEXT | {"head_dim": 8},
        vision_config=_VISION | {"vision_use_head": False},
        mm_tokens_per_image=4,
        image_token_index=IMAGE_TOKEN,
        boi_token_index=61,
        eoi_token_index=62,
        architectures=["Gemma3ForConditionalGeneration"],
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def _siglip() -> PreTrainedModel:
    config = transformers.SiglipVisionConfig(**_VISION, architectures=["SiglipVisionModel"])
    return transformers.SiglipVisionModel(config)


def _classifier_with_batch_norm() -> PreTrainedModel:
    """Return a classifier whose head holds running means beside its weights."""
    model = _encoder("BertForSequenceClassification", num_labels=3)()
    model.classifier = nn.Sequential(nn.Linear(32, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))
    return model


_ENCODER: dict[str, Any] = {
    "group": "encoder",
    "attention": ("query", "value"),
    "feed_forward": ("intermediate.dense", "output.dense"),
    "output": "attention.output.dense",
    "embedding": "word_embeddings",
    "norm": "LayerNorm",
    "layers": "layer",
    "one_path": "bert.encoder.layer.1.attention.self.query",
    "task": None,
}
_EXPERTS = {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2}

DENSE = Kind("llama", "dense", text_model("LlamaForCausalLM"))
TIED = Kind("llama-tied", "tied", text_model("LlamaForCausalLM", tie_word_embeddings=True))
GPT2 = Kind(
    "gpt2",
    "tied",
    _gpt2,
    attention=("c_attn",),
    feed_forward=("c_fc", "mlp.c_proj"),
    output="attn.c_proj",
    embedding="wte",
    norm="ln_1",
    layers="h",
    one_path="transformer.h.1.attn.c_attn",
)
ENCODER = Kind(
    "bert",
    head="cls.predictions.decoder",
    build=_encoder("BertForMaskedLM", tie_word_embeddings=False),
    **_ENCODER,
)
CLASSIFIER = Kind(
    "bert-classifier",
    head="classifier",
    build=_encoder("BertForSequenceClassification", num_labels=3),
    **_ENCODER | {"task": "SEQ_CLS"},
)
BACKBONE = Kind(
    "bert-backbone",
    head=None,
    build=_encoder("BertModel"),
    **_ENCODER | {"task": "FEATURE_EXTRACTION", "one_path": "encoder.layer.1.attention.self.query"},
)
SEQ2SEQ = Kind(
    "t5",
    "seq2seq",
    _t5,
    attention=("q", "v"),
    feed_forward=("wi", "wo"),
    output="o",
    embedding="shared",
    norm="layer_norm",
    layers="block",
    one_path="encoder.block.1.layer.0.SelfAttention.q",
    task="SEQ_2_SEQ_LM",
)
VISION = Kind("gemma3", "vision-language", _gemma3, one_path="model.language_model.layers.1.self_attn.q_proj")
SIGLIP = Kind(
    "siglip",
    "vision-language",
    _siglip,
    feed_forward=("fc1", "fc2"),
    output="out_proj",
    head=None,
    embedding="position_embedding",
    norm="layer_norm1",
    layers=None,
    one_path="encoder.layers.0.self_attn.q_proj",
    task=None,
)
NORMALISED_HEAD = Kind(
    "bert-normalised-head",
    head="classifier",
    build=_classifier_with_batch_norm,
    **_ENCODER | {"task": "SEQ_CLS"},
)
QWEN3_MOE = Kind(
    "qwen3-moe",
    "mixture of experts",
    text_model("Qwen3MoeForCausalLM", head_dim=8, **_EXPERTS),
    experts="mlp.experts",
)
MIXTRAL = Kind(
    "mixtral",
    "mixture of experts",
    text_model("MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2),
    feed_forward=("w1", "w3", "w2"),
    experts="mlp.experts",
)
OLMOE = Kind(
    "olmoe",
    "mixture of experts",
    text_model("OlmoeForCausalLM", num_experts=4, num_experts_per_tok=2),
    experts="mlp.experts",
)
DEEPSEEK_V3 = Kind(
    "deepseek-v3",
    "mixture of experts",
    text_model(
        "DeepseekV3ForCausalLM",
        num_key_value_heads=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        n_group=1,
        topk_group=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        first_k_dense_replace=1,
    ),
    attention=("q_b_proj", "kv_b_proj"),
    one_path="model.layers.1.self_attn.q_b_proj",
    experts="mlp.experts",
)
QWEN3_NEXT = Kind(
    "qwen3-next",
    "mixture of experts",
    text_model(
        "Qwen3NextForCausalLM",
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        shared_expert_intermediate_size=16,
        **_EXPERTS,
    ),
    experts="mlp.experts",
)
GPT_OSS = Kind(
    "gpt-oss",
    "mixture of experts",
    text_model(
        "GptOssForCausalLM",
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=16,
    ),
    experts="mlp.experts",
)

# Crossed with every option.
FULL = (DENSE, QWEN3_MOE, VISION, ENCODER, SEQ2SEQ, TIED)
# Crossed with the cases that are about them.
MIXTURES = (QWEN3_MOE, MIXTRAL, OLMOE, DEEPSEEK_V3, QWEN3_NEXT, GPT_OSS)
ALL = (*FULL, *MIXTURES[1:], GPT2, CLASSIFIER, BACKBONE, SIGLIP)
BY_NAME = {kind.name: kind for kind in ALL}
