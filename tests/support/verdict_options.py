"""Cases for every option of PEFT's ``LoraConfig``, as functions of the kind of base model.

A case that makes no sense for a kind gives nothing. A test compares ``covered_fields`` with the fields
of the installed PEFT, so an option that a new PEFT adds fails until it has a case here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import BdLoraConfig, LoraConfig, LoraRuntimeConfig, MontecloraConfig, VeloraConfig
from peft.tuners.lora.config import (
    ArrowConfig,
    CordaConfig,
    EvaConfig,
    KasaConfig,
    LoftQConfig,
    LoraGAConfig,
)
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from transformers import PreTrainedModel

from .models import some_tokens
from .verdict_kinds import (
    ALL,
    BACKBONE,
    CLASSIFIER,
    ENCODER,
    FULL,
    GPT2,
    MIXTURES,
    SEQ2SEQ,
    SIGLIP,
    VISION,
    Kind,
)

Options = dict[str, Any]
Prepare = Callable[[PreTrainedModel, LoraConfig, Kind], None]


@dataclass(frozen=True)
class Case:
    """One value of an option; ``fields`` are the fields of ``LoraConfig`` that it is about."""

    name: str
    fields: tuple[str, ...]
    options: Callable[[Kind], Options | None]
    kinds: tuple[Kind, ...] = FULL
    # What PEFT's documentation has the user run before ``get_peft_model``.
    prepare: Prepare | None = None
    # Whether the adapter is saved as the difference to its initial factors, as that documentation advises.
    is_converted: bool = False

    def options_for(self, kind: Kind) -> Options | None:
        """Return all options of the case for this kind of base; None where it does not apply."""
        own = self.options(kind)
        if own is None:
            return None
        common = {"r": 4, "lora_alpha": 8, "target_modules": [*kind.attention], "task_type": kind.task}
        return common | own


def _case(
    name: str,
    *fields: str,
    kinds: tuple[Kind, ...] = FULL,
    prepare: Prepare | None = None,
    is_converted: bool = False,
    per_kind: Callable[[Kind], Options | None] | None = None,
    **options: Any,
) -> Case:
    return Case(name, fields or tuple(options), per_kind or (lambda _: options), kinds, prepare, is_converted)


def _prepare_corda(model: PreTrainedModel, config: LoraConfig, kind: Kind) -> None:
    # CorDA takes one sequence at a time.
    inputs = {name: value[:1] for name, value in kind.inputs().items()}

    def run() -> None:
        with torch.no_grad():
            model(**inputs)

    preprocess_corda(model, config, run_model=run)


def _prepare_lora_ga(model: PreTrainedModel, config: LoraConfig, kind: Kind) -> None:
    def step() -> None:
        result = model(**kind.inputs())
        found = result.last_hidden_state if getattr(result, "logits", None) is None else result.logits
        found.square().mean().backward()

    preprocess_loraga(model, config, step)


def _beside_attention(kind: Kind) -> Options:
    return {"target_modules": [*kind.attention, kind.output]}


def _mixed(kind: Kind, ranks: Mapping[str, int]) -> Options:
    return _beside_attention(kind) | {"rank_pattern": dict(ranks), "alpha_pattern": {kind.output: 3}}


_TARGETS = (
    _case("a list", "target_modules", "peft_type", "r", "lora_alpha", "peft_version"),
    _case(
        "one expression",
        "target_modules",
        per_kind=lambda k: {"target_modules": rf".*\.({'|'.join(k.attention)})"},
    ),
    _case("a whole path", "target_modules", per_kind=lambda k: {"target_modules": [k.one_path]}),
    _case("one path as text", "target_modules", per_kind=lambda k: {"target_modules": k.one_path}),
    _case("all-linear", target_modules="all-linear"),
    _case("PEFT's default", target_modules=None),
    _case(
        "one name of two matches",
        "target_modules",
        per_kind=lambda k: {"target_modules": [*k.attention, "absent"]},
    ),
    _case("feed forward", "target_modules", per_kind=lambda k: {"target_modules": [*k.feed_forward]}),
    _case(
        "attention and feed forward",
        "target_modules",
        kinds=ALL,
        per_kind=lambda k: {"target_modules": [*k.attention, *k.feed_forward]},
    ),
    _case("embedding", "target_modules", per_kind=lambda k: {"target_modules": [*k.attention, k.embedding]}),
    _case(
        "head",
        "target_modules",
        per_kind=lambda k: {"target_modules": [*k.attention, k.head]} if k.head else None,
    ),
    _case("embedding alone", "target_modules", per_kind=lambda k: {"target_modules": [k.embedding]}),
    _case("excluded names", "exclude_modules", per_kind=lambda k: {"exclude_modules": [k.attention[-1]]}),
    _case(
        "excluded expression",
        "exclude_modules",
        per_kind=lambda k: {"exclude_modules": rf".*\.0\..*{k.attention[0]}"},
    ),
    _case("one layer", layers_to_transform=1),
    _case("a list of layers", layers_to_transform=[1]),
    _case(
        "one layer of a pattern",
        "layers_to_transform",
        "layers_pattern",
        per_kind=lambda k: {"layers_to_transform": [1], "layers_pattern": k.layers},
    ),
    _case(
        "layers patterns",
        "layers_pattern",
        per_kind=lambda k: {"layers_to_transform": [0], "layers_pattern": [k.layers, "absent"]},
    ),
    _case(
        "a weight as parameter",
        "target_parameters",
        per_kind=lambda k: {"target_parameters": [f"{k.attention[0]}.weight"], "target_modules": []},
    ),
    _case(
        "a weight as parameter beside modules",
        "target_parameters",
        per_kind=lambda k: {"target_parameters": [f"{k.output}.weight"]},
    ),
)

_SCALES = (
    _case("rank 1", r=1),
    _case("rank above the features", r=40),
    _case("alpha of a fraction", lora_alpha=0.5),
    _case("alpha below zero", lora_alpha=-8),
    _case("alpha zero", lora_alpha=0),
    _case("dropout", lora_dropout=0.1),
    _case("rank-stabilised", use_rslora=True),
    _case("ranks by name", "rank_pattern", per_kind=lambda k: {"rank_pattern": {k.attention[0]: 6}}),
    _case("alphas by name", "alpha_pattern", per_kind=lambda k: {"alpha_pattern": {k.attention[0]: 32}}),
    _case(
        "ranks by look-ahead",
        "rank_pattern",
        per_kind=lambda k: {"rank_pattern": {rf"(?!absent).*{k.attention[0]}": 6}},
    ),
    _case(
        "alpha below zero by name",
        "alpha_pattern",
        per_kind=lambda k: {"alpha_pattern": {k.attention[0]: -4}},
    ),
    _case(
        "ranks, alphas and rank-stabilised",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        per_kind=lambda k: _mixed(k, {k.attention[0]: 2}) | {"use_rslora": True},
    ),
    _case("an entry for no module", rank_pattern={"absent": 3}),
)

_EXTRAS = (
    _case("all biases", bias="all", kinds=(*FULL, GPT2)),
    _case("biases of LoRA modules", bias="lora_only", kinds=(*FULL, GPT2)),
    _case("bias of B", lora_bias=True),
    _case("transposed", fan_in_fan_out=True, kinds=(*FULL, GPT2)),
    _case(
        "saved head", "modules_to_save", per_kind=lambda k: {"modules_to_save": [k.head]} if k.head else None
    ),
    _case("saved embedding", "modules_to_save", per_kind=lambda k: {"modules_to_save": [k.embedding]}),
    _case("saved norms", "modules_to_save", per_kind=lambda k: {"modules_to_save": [k.norm]}),
    _case(
        "saved and targeted",
        "modules_to_save",
        per_kind=lambda k: {"modules_to_save": [k.norm, k.head]} | _beside_attention(k) if k.head else None,
    ),
    _case("token rows", trainable_token_indices=[3, 5, 7]),
    _case(
        "token rows by name",
        "trainable_token_indices",
        per_kind=lambda k: {"trainable_token_indices": {k.embedding: [3, 5, 7]}},
    ),
    _case(
        "tied token rows",
        "ensure_weight_tying",
        "trainable_token_indices",
        trainable_token_indices=[3, 5],
        ensure_weight_tying=True,
    ),
    _case(
        "tied embedding, saved",
        "ensure_weight_tying",
        per_kind=lambda k: {"modules_to_save": [k.embedding], "ensure_weight_tying": True},
    ),
    _case(
        "tied embedding, adapted",
        "ensure_weight_tying",
        per_kind=lambda k: {"target_modules": [*k.attention, k.embedding], "ensure_weight_tying": True},
    ),
)

_INITIALISATIONS = (
    _case("random B", init_lora_weights=False),
    _case("gaussian", init_lora_weights="gaussian"),
    _case("orthogonal", init_lora_weights="orthogonal"),
    _case("EVA", "init_lora_weights", "eva_config", init_lora_weights="eva", eva_config=EvaConfig()),
    _case("MiCA", init_lora_weights="mica"),
    _case("OLoRA", init_lora_weights="olora"),
    _case("PiSSA", init_lora_weights="pissa"),
    _case("PiSSA by iteration", init_lora_weights="pissa_niter_4"),
    _case("LoftQ", init_lora_weights="loftq", loftq_config=LoftQConfig(loftq_bits=4)),
    _case("CorDA", prepare=_prepare_corda, init_lora_weights="corda", corda_config=CordaConfig()),
    _case("LoRA-GA", prepare=_prepare_lora_ga, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig()),
    _case("OLoRA, converted", init_lora_weights="olora", is_converted=True),
    _case("PiSSA, converted", init_lora_weights="pissa", is_converted=True),
    _case(
        "PiSSA, converted, with patterns",
        "init_lora_weights",
        "rank_pattern",
        is_converted=True,
        per_kind=lambda k: _mixed(k, {k.attention[0]: 2}) | {"init_lora_weights": "pissa"},
    ),
    _case(
        "CorDA, converted",
        prepare=_prepare_corda,
        is_converted=True,
        init_lora_weights="corda",
        corda_config=CordaConfig(),
    ),
    _case(
        "LoRA-GA, converted",
        prepare=_prepare_lora_ga,
        is_converted=True,
        init_lora_weights="lora_ga",
        lora_ga_config=LoraGAConfig(),
    ),
)

_VARIANTS = (
    _case("DoRA", use_dora=True),
    _case(
        "DoRA on the embedding",
        "use_dora",
        per_kind=lambda k: {"target_modules": [k.embedding], "use_dora": True},
    ),
    _case("VeLoRA", velora_config=VeloraConfig(num_groups=4)),
    _case("KaSA", kasa_config=KasaConfig()),
    _case("activated LoRA", alora_invocation_tokens=[int(some_tokens()[0, 7])]),
    _case("QA-LoRA", use_qalora=True, qalora_group_size=8),
    _case("MonteCLoRA", monteclora_config=MontecloraConfig(num_samples=2)),
    _case("repeated layers", layer_replication=[(0, 2), (1, 2)]),
    _case(
        "BD-LoRA",
        "use_bdlora",
        per_kind=lambda k: (
            _beside_attention(k)
            | {
                "use_bdlora": BdLoraConfig(
                    target_modules_bd_a=[k.output], target_modules_bd_b=[*k.attention], nblocks=2
                )
            }
        ),
    ),
    _case("Arrow router", arrow_config=ArrowConfig(top_k=1)),
    _case("Megatron", megatron_config={"tensor_model_parallel_size": 1}, megatron_core="megatron.core"),
)

_LABELS = (
    _case("no task", "task_type", "auto_mapping", task_type=None),
    _case("head of a classifier", task_type="SEQ_CLS", kinds=(CLASSIFIER,)),
    _case("features", task_type="FEATURE_EXTRACTION", kinds=(BACKBONE,)),
    _case("question answering", task_type="QUESTION_ANS"),
    _case("inference mode", inference_mode=True),
    _case("no base", "base_model_name_or_path", base_model_name_or_path=None),
    _case("base on a machine", "base_model_name_or_path", base_model_name_or_path="/content/base"),
    _case("revision", revision="main"),
    _case("runtime", "runtime_config", runtime_config=LoraRuntimeConfig(ephemeral_gpu_offload=False)),
)

_MODALITIES = (
    _case("language model only", kinds=(VISION,), target_modules=r".*language_model.*\.(q_proj|v_proj)"),
    _case("image encoder only", kinds=(VISION,), target_modules=r".*vision_tower.*\.(q_proj|v_proj)"),
    _case("convolution", kinds=(VISION, SIGLIP), target_modules=["q_proj", "patch_embedding"]),
    _case("position embedding", kinds=(VISION, ENCODER), target_modules=r".*position_embeddings?|.*\.q_proj"),
    _case("attention of torch", kinds=(SIGLIP,), target_modules=["q_proj", "out_proj"]),
    _case("a whole attention of torch", kinds=(SIGLIP,), target_modules=["q_proj", "head.attention"]),
    _case("encoder alone", kinds=(SEQ2SEQ,), target_modules=r"encoder\..*\.(q|v)"),
    _case("cross attention", kinds=(SEQ2SEQ,), target_modules=r".*EncDecAttention\.(q|v)"),
    _case("transposed layers", kinds=(GPT2,), target_modules=["c_attn", "c_proj"], fan_in_fan_out=True),
    _case("transposed layers, wrong flag", kinds=(GPT2,), target_modules=["c_attn"], fan_in_fan_out=False),
    _case("transposed layers, all-linear", kinds=(GPT2,), target_modules="all-linear"),
)

_MIXTURE = (
    _case(
        "stacked experts as parameters",
        "target_parameters",
        kinds=MIXTURES,
        per_kind=lambda k: {"target_parameters": [f"{k.experts}.gate_up_proj", f"{k.experts}.down_proj"]},
    ),
    _case(
        "one stacked parameter",
        "target_parameters",
        kinds=MIXTURES,
        per_kind=lambda k: {"target_parameters": [f"{k.experts}.down_proj"]},
    ),
    _case(
        "stacked experts alone",
        "target_parameters",
        kinds=MIXTURES,
        per_kind=lambda k: {"target_parameters": [f"{k.experts}.down_proj"], "target_modules": []},
    ),
    _case(
        "stacked experts with patterns",
        "target_parameters",
        "rank_pattern",
        kinds=MIXTURES,
        per_kind=lambda k: {
            "target_parameters": [f"{k.experts}.gate_up_proj"],
            "rank_pattern": {f"{k.experts}.gate_up_proj": 2},
            "alpha_pattern": {f"{k.experts}.gate_up_proj": 6},
            "use_rslora": True,
        },
    ),
    _case(
        "expert names alone",
        "target_modules",
        kinds=MIXTURES,
        per_kind=lambda k: {"target_modules": [*k.feed_forward]},
    ),
    _case(
        "down alone",
        "target_modules",
        kinds=MIXTURES,
        per_kind=lambda k: {"target_modules": [k.feed_forward[-1]]},
    ),
    _case(
        "gate and up",
        "target_modules",
        kinds=MIXTURES,
        per_kind=lambda k: {"target_modules": [*k.feed_forward[:2]]},
    ),
    _case("all-linear mixture", target_modules="all-linear", kinds=MIXTURES[1:]),
    _case(
        "expert expression",
        "target_modules",
        kinds=MIXTURES,
        per_kind=lambda k: {"target_modules": rf".*\.({'|'.join([*k.attention, *k.feed_forward])})"},
    ),
    _case(
        "router",
        "target_modules",
        kinds=MIXTURES,
        per_kind=lambda k: {"target_modules": ["gate", *k.attention]},
    ),
    _case("router as parameter", target_parameters=["gate.weight"], kinds=MIXTURES),
    _case("saved router", modules_to_save=["gate"], kinds=MIXTURES),
    _case("attention of a mixture", "target_modules", kinds=MIXTURES[1:]),
)

CASES = (
    *_TARGETS,
    *_SCALES,
    *_EXTRAS,
    *_INITIALISATIONS,
    *_VARIANTS,
    *_LABELS,
    *_MODALITIES,
    *_MIXTURE,
)


def covered_fields() -> set[str]:
    """Return the fields of ``LoraConfig`` that some case is about."""
    return {name for case in CASES for name in case.fields}
