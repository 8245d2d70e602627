"""An inspected adapter beside vLLM, the engine that is to serve it: the subject of its rules.

The facts are those of vLLM 0.32.0, read from its files, which the comments name; nothing of it is imported.
`tests/vllm` asks a real engine for the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .config import LoraConfig
from .header import Header

VLLM = "vLLM 0.32.0"
# vllm/config/lora.py
ALLOWED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
DEFAULT_MAX_RANK = 16
# vllm/lora/peft_helper.py: initialisations that leave a plain pair on the plain base. LoRA-GA is among them
# there, although its pair is right on a changed base only.
PLAIN_INITIALISATIONS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
# vllm/lora/peft_helper.py: options that are refused where they are set.
REFUSED_OPTIONS = (
    "use_dora",
    "lora_bias",
    "alora_invocation_tokens",
    "layer_replication",
    "use_bdlora",
    "use_qalora",
)
REQUIRED_FIELDS = ("r", "lora_alpha", "target_modules")
# vllm/lora/peft_helper.py: what replaces the head of a model that classifies.
HEADS = frozenset({"classifier", "score"})
# vllm/lora/utils.py: the names that it reads, and the embedding's own weights, which it passes over.
_READ_NAMES = re.compile(
    r".+\.lora_[AB]\.weight|.+\.lora_embedding_[AB]|.+\.(embed_tokens|lm_head)\.base_layer\.weight"
)
# vllm/lora/model_manager.py: without `--enable-tower-connector-lora` only the language model has adapters.
_TOWERS = frozenset(
    {"vision_tower", "vision_model", "visual", "multi_modal_projector", "audio_tower", "speech_encoder"}
)
_EXPERTS = "experts"
# vllm/model_executor/models: classes that generate and say, when they are loaded, that they have no adapters.
# A class that is not there at all may run by transformers' own code, which has them.
WITHOUT_ADAPTERS = frozenset(
    # A list would take fifty lines.
    """
    AriaForConditionalGeneration BailingMoeV2_5ForCausalLM BailingMoeV3ForCausalLM BloomForCausalLM
    Cohere2MoeForCausalLM DbrxForCausalLM DeepseekV41ForCausalLM DeepseekV4ForCausalLM
    DeepseekV4ForConditionalGeneration DeepseekVLV2ForCausalLM FalconForCausalLM FalconMambaForCausalLM
    FireRedASR2ForConditionalGeneration FunAudioChatForConditionalGeneration GPT2LMHeadModel
    GPTJForCausalLM Gemma3nForCausalLM Gemma3nForConditionalGeneration HfMoondream HrmTextForCausalLM
    IQuestLoopCoderForCausalLM KimiK25ForConditionalGeneration KimiK3ForConditionalGeneration
    KimiLinearForCausalLM KimiVLForConditionalGeneration Mamba2ForCausalLM MambaForCausalLM
    MiMoV2FlashForCausalLM MiMoV2ForCausalLM Moondream3ForCausalLM MoonshotKimiaForCausalLM
    MossTranscribeDiarizeForConditionalGeneration NemotronParseForConditionalGeneration
    OpenVLAForActionPrediction OrionForCausalLM Ovis Ovis2_5 Ovis2_6ForCausalLM Ovis2_6_MoeForCausalLM
    PaddleOCRVLForConditionalGeneration Phi3VForCausalLM Qwen2AudioForConditionalGeneration
    StableLmForCausalLM Step1ForCausalLM Step3TextForCausalLM Step3p5ForCausalLM Zamba2ForCausalLM
    """.split()  # noqa: SIM905
)
# The same: classes that have adapters, and no `embedding_modules`.
WITHOUT_VOCABULARY_LAYERS = frozenset(
    """
    AXK1ForCausalLM AfmoeForCausalLM BailingMoeForCausalLM BailingMoeV2ForCausalLM
    ChatGLMForConditionalGeneration ChatGLMModel DeepseekForCausalLM DeepseekV2ForCausalLM
    DeepseekV32ForCausalLM DeepseekV3ForCausalLM Ernie4_5_MoeForCausalLM Gemma2ForCausalLM
    Gemma3ForCausalLM Gemma4ForCausalLM GemmaForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM
    Glm4MoeLiteForCausalLM GlmMoeDsaForCausalLM GptOssForCausalLM HYV3ForCausalLM HYV4ForCausalLM
    InternLM2ForCausalLM LagunaForCausalLM LongcatFlashForCausalLM LongcatFlashNgramForCausalLM
    MiMoForCausalLM MiniMaxM2ForCausalLM Ministral3ForCausalLM MistralForCausalLM MistralLarge3ForCausalLM
    OPTForCausalLM OlmoHybridForCausalLM OlmoeForCausalLM PanguEmbeddedForCausalLM
    PanguProMoEV2ForCausalLM PanguUltraMoEForCausalLM Plamo3ForCausalLM Qwen2ForCausalLM
    Qwen2MoeForCausalLM Qwen3NextForCausalLM Rnj1ForCausalLM SarvamMLAForCausalLM SarvamMoEForCausalLM
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """The largest rank that an engine is started with, and the classes that the base's config names."""

    max_rank: int = DEFAULT_MAX_RANK
    architectures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineCase:
    """An inspected LoRA adapter before an engine; ``header`` is None for a config alone."""

    config: LoraConfig
    header: Header | None
    limits: EngineLimits

    @property
    def max_rank(self) -> int | None:
        """The rank that the engine makes room for: the largest that the config names, used or not."""
        ranks = [self.config.value.get("r"), *self.config.patterns("rank_pattern").values()]
        return max((rank for rank in ranks if type(rank) is int), default=None)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the tensors."""
        return tuple(entry.name for entry in self.header.tensors) if self.header else ()


def is_read(name: str) -> bool:
    """Return whether the engine knows what a tensor of this name is."""
    return _READ_NAMES.fullmatch(name) is not None


def is_of_tower(name: str) -> bool:
    """Return whether a tensor is of a module around the language model, such as one for images."""
    return not _TOWERS.isdisjoint(name.split("."))


def is_of_experts(name: str) -> bool:
    """Return whether a tensor is of the experts of a mixture."""
    return _EXPERTS in name.split(".")


def least_max_rank(rank: int) -> int | None:
    """Return the least `--max-lora-rank` that has room for a rank; None if none has."""
    return next((allowed for allowed in ALLOWED_RANKS if allowed >= rank), None)
