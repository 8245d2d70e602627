"""The methods and options of PEFT that a config can name, as lists of names."""

from __future__ import annotations

# Every peft_type of PEFT 0.21.2 but LORA, and BONE, which PEFT dropped in favour of MISS.
OTHER_METHODS = frozenset(
    # A list would take fifty lines.
    """
    PROMPT_TUNING MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING ADALORA ADAMSS BOFT ADAPTION_PROMPT IA3 BEFT
    LILY LOHA LOKR OFT POLY LN_TUNING VERA FROD PVERA FOURIERFT GLORA XLORA HRA VBLORA UNILORA CPT MISS
    RANDLORA ROAD TRAINABLE_TOKENS HIRA SHIRA C3A WAVEFT OSF DELORA GRALORA CARTRIDGE TINYLORA PSOFT PEANUT
    SHADOW SUPERTUNING DEFT BONE
    """.split()  # noqa: SIM905
)
BUNDLE_METHOD = "METEORA"

# Initialisations after which A and B are an ordinary LoRA pair.
PLAIN_INITIALISATIONS = frozenset({"gaussian", "eva", "orthogonal", "mica"})
# These move part of the base's weight into the factors, so the factors are right on a changed base only.
BASE_CHANGING_INITIALISATIONS = ("pissa", "olora", "loftq", "lora_ga")
# It needs statistics that no file holds, so PEFT loads such an adapter only once it is converted.
UNLOADABLE_INITIALISATION = "corda"
# Those of the options below that are objects: an empty one is set, with the values that PEFT gives it.
OBJECT_OPTIONS = frozenset({"use_bdlora", "kasa_config", "monteclora_config", "arrow_config"})

# Options that make the layer compute something else than W x + s B A x, with what they are.
VARIANT_OPTIONS = {
    "alora_invocation_tokens": "activated LoRA (aLoRA)",
    "layer_replication": "layer replication",
    "use_bdlora": "block-diagonal LoRA (BD-LoRA)",
    "use_qalora": "QA-LoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "an Arrow router",
    "megatron_config": "Megatron parallel layers",
}

OUTPUT_LAYERS = frozenset({"lm_head", "embed_out", "output_layer"})
EMBEDDING_LAYERS = frozenset({"embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in"})
