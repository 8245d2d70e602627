"""Rules about the kind of adapter that a config declares."""

from __future__ import annotations

from typing import Any

from ...schemas.finding import Effect, Severity
from ...schemas.quotation import quote, quote_name
from ..config import KNOWN_FIELDS, PEFT_TYPE, TASK_TYPES, Config, LoraConfig
from ..methods import (
    BASE_CHANGING_INITIALISATIONS,
    BUNDLE_METHOD,
    OBJECT_OPTIONS,
    OTHER_METHODS,
    PLAIN_INITIALISATIONS,
    UNLOADABLE_INITIALISATION,
    VARIANT_OPTIONS,
)
from .rule import CONFIG_FILE, Observation, Observations, rule

_BIASES = ("none", "all", "lora_only")
_MLX_FIELDS = ("lora_parameters", "fine_tune_type")


@rule(
    "MR101",
    Config,
    Effect.BROKEN,
    file=CONFIG_FILE,
    why="PEFT answers with a bare KeyError; a server that does not look takes anything for LoRA",
    remedy="save the adapter with PEFT's `save_pretrained`, which writes `peft_type`",
)
def peft_type_is_missing(config: Config) -> Observations:
    """The config names no PEFT method."""
    found = config.value.get("peft_type")
    if isinstance(found, str):
        return
    if any(name in config.value for name in _MLX_FIELDS):
        yield Observation(
            "the config of an mlx-lm adapter",
            "`peft_type`",
            field="peft_type",
            remedy="convert the adapter from MLX to PEFT: transpose lora_a and lora_b, rename the tensors, "
            "write a LoraConfig",
        )
    else:
        yield Observation(
            quote(found) if "peft_type" in config.value else "nothing", '`"LORA"`', field="peft_type"
        )


@rule(
    "MR102",
    Config,
    Effect.BROKEN,
    file=CONFIG_FILE,
    why="PEFT 0.21.2 does not know it and cannot load the adapter",
    remedy="write the method as PEFT does, in capitals; a method of another tool needs that tool",
)
def peft_type_is_unknown(config: Config) -> Observations:
    """The config names a method that PEFT does not know."""
    found = config.value.get("peft_type")
    if isinstance(found, str) and found not in OTHER_METHODS | {PEFT_TYPE, BUNDLE_METHOD}:
        known = found.upper() if found.upper() in OTHER_METHODS | {PEFT_TYPE} else PEFT_TYPE
        yield Observation(quote(found), quote(known), field="peft_type")


@rule(
    "MR103",
    Config,
    Effect.NOT_FUSABLE,
    file=CONFIG_FILE,
    why="a bundle adds s B A x per member, which is LoRA; other methods compute something else",
    remedy="use the adapter by itself with PEFT; only LoRA adapters can be fused",
)
def peft_type_is_another_method(config: Config) -> Observations:
    """The adapter is of another PEFT method than LoRA."""
    found = config.value.get("peft_type")
    if isinstance(found, str) and found in OTHER_METHODS:
        yield Observation(quote(found), '`"LORA"`', field="peft_type")


@rule(
    "MR104",
    Config,
    Effect.NOT_FUSABLE,
    file=CONFIG_FILE,
    why="a bundle holds many adapters and cannot be a member of another bundle",
    remedy="take the members out with `meteora-registry extract` and fuse those",
)
def adapter_is_bundle(config: Config) -> Observations:
    """This is a MeteoRA bundle, not a single adapter."""
    if config.value.get("peft_type") == BUNDLE_METHOD:
        yield Observation(quote(BUNDLE_METHOD), '`"LORA"`', field="peft_type")


@rule(
    "MR105",
    LoraConfig,
    Severity.WARN,
    file=CONFIG_FILE,
    why="PEFT ignores a field it does not know; a misspelt one has no effect",
    remedy="remove the field, or correct its name",
)
def field_is_unknown(config: LoraConfig) -> Observations:
    """The config has a field that PEFT does not know."""
    for name in sorted(set(config.value) - KNOWN_FIELDS):
        yield Observation("a field that PEFT 0.21.2 ignores", "a field of LoraConfig", field=name)


@rule(
    "MR106",
    Config,
    Effect.BROKEN,
    file=CONFIG_FILE,
    why="PEFT refuses the whole config with a ValueError",
    remedy="write one of the task types of PEFT, or null",
)
def task_type_is_unknown(config: Config) -> Observations:
    """PEFT does not know the task type."""
    found = config.value.get("task_type")
    if found is not None and not (isinstance(found, str) and found in TASK_TYPES):
        yield Observation(quote(found), " or ".join(sorted(TASK_TYPES)), field="task_type")


@rule(
    "MR107",
    LoraConfig,
    Effect.BROKEN,
    file=CONFIG_FILE,
    why='Python takes every non-empty text for true, even `"false"`: loaders may do the opposite of the word',
    remedy="write true or false without quotes",
)
def switch_is_no_boolean(config: LoraConfig) -> Observations:
    """A switch of the config is neither true nor false."""
    for name in ("use_rslora", "use_dora", "use_qalora", "lora_bias", "fan_in_fan_out"):
        found = config.value.get(name)
        if found is not None and not isinstance(found, bool):
            yield Observation(quote(found), "`true` or `false`", field=name)


@rule(
    "MR108",
    LoraConfig,
    Effect.BROKEN,
    file=CONFIG_FILE,
    why="PEFT stops with an error when it loads the adapter, or silently leaves it switched off",
    remedy="correct the option; an initialisation does not matter for a trained adapter, unless it changed "
    "the base: convert it with `save_pretrained(..., path_initial_model_for_weight_conversion=...)`",
)
def option_cannot_be_loaded(config: LoraConfig) -> Observations:
    """PEFT cannot use the adapter with the value of an option."""
    value = config.value
    if "bias" in value and value["bias"] not in _BIASES:
        yield Observation(quote(value["bias"]), " or ".join(map(quote, _BIASES)), field="bias")
    found = initialisation(config)
    if isinstance(found, str) and found.startswith(UNLOADABLE_INITIALISATION):
        yield Observation(f"{quote(found)}, not converted", "`true`", field="init_lora_weights")
    if found == "loftq" and not value.get("loftq_config"):
        yield Observation(f"{quote(found)} without `loftq_config`", "`true`", field="init_lora_weights")
    if value.get("arrow_config") is not None:
        yield Observation("the options of a router over several adapters", "`null`", field="arrow_config")
    if value.get("alora_invocation_tokens") is not None and value.get("task_type") != "CAUSAL_LM":
        found = f"an activated adapter of the task {quote(value.get('task_type'))}"
        yield Observation(found, '`"CAUSAL_LM"`', field="task_type")


@rule(
    "MR121",
    LoraConfig,
    Effect.NOT_FUSABLE,
    file=CONFIG_FILE,
    why="DoRA rescales the sum of base and delta, so the delta depends on the base's weights",
    remedy="serve the adapter by itself, or train it again without `use_dora`",
)
def adapter_uses_dora(config: LoraConfig) -> Observations:
    """The adapter uses DoRA."""
    if config.value.get("use_dora"):
        yield Observation(quote(config.value["use_dora"]), "`false`", field="use_dora")


@rule(
    "MR122",
    LoraConfig,
    Effect.NOT_FUSABLE,
    file=CONFIG_FILE,
    why="trained biases are a part of the adapter that a bundle has no place for; SGLang drops them silently",
    remedy='train with `bias="none"` and `lora_bias=False`',
)
def biases_are_trained(config: LoraConfig) -> Observations:
    """The adapter trains biases."""
    bias = config.value.get("bias")
    if bias in ("all", "lora_only"):
        yield Observation(quote(bias), '`"none"`', field="bias")
    if config.value.get("lora_bias"):
        yield Observation(quote(config.value["lora_bias"]), "`false`", field="lora_bias")


@rule(
    "MR123",
    LoraConfig,
    Effect.NOT_FUSABLE,
    file=CONFIG_FILE,
    why="PEFT changes the base's weights when it trains or loads this, not always reproducibly; on the plain "
    "base the factors are wrong",
    remedy="convert it with `save_pretrained(..., path_initial_model_for_weight_conversion=...)`, "
    "which makes a plain LoRA of twice the rank",
)
def initialisation_changes_base(config: LoraConfig) -> Observations:
    """The initialisation changes the base model."""
    found = initialisation(config)
    if isinstance(found, str) and found.startswith(BASE_CHANGING_INITIALISATIONS):
        yield Observation(quote(config.value["init_lora_weights"]), "`true`", field="init_lora_weights")


@rule(
    "MR125",
    LoraConfig,
    Effect.BROKEN,
    file=CONFIG_FILE,
    why="PEFT refuses to build the layers: `Unknown initialization`",
    remedy="write true; the initialisation does not matter for a trained adapter",
)
def initialisation_is_unknown(config: LoraConfig) -> Observations:
    """PEFT does not know the initialisation."""
    found = initialisation(config)
    if found is None or isinstance(found, bool):
        return
    others = (*BASE_CHANGING_INITIALISATIONS, UNLOADABLE_INITIALISATION)
    is_known = isinstance(found, str) and (found in PLAIN_INITIALISATIONS or found.startswith(others))
    if not is_known:
        yield Observation(quote(found), "`true`, or a name that PEFT knows", field="init_lora_weights")


@rule(
    "MR126",
    LoraConfig,
    Effect.NOT_FUSABLE,
    file=CONFIG_FILE,
    why="the layer computes something else than W x + s B A x, which is all that a bundle holds",
    remedy="use the adapter by itself with PEFT, or train a plain LoRA",
)
def adapter_is_variant(config: LoraConfig) -> Observations:
    """The adapter is a variant of LoRA."""
    for name, meaning in VARIANT_OPTIONS.items():
        found = config.value.get(name)
        if _is_set(found) or (found is not None and name in OBJECT_OPTIONS):
            yield Observation(meaning, "plain LoRA", field=name)


@rule(
    "MR127",
    LoraConfig,
    Effect.NOT_FUSABLE,
    file=CONFIG_FILE,
    why="it adapts bare parameters, such as the stacked experts of a mixture model, and no linear module",
    remedy="use the adapter by itself with PEFT; bundle format 1 knows linear modules only",
)
def parameters_are_targeted(config: LoraConfig) -> Observations:
    """The adapter targets parameters instead of modules."""
    if _is_set(config.value.get("target_parameters")):
        yield Observation(quote(config.value["target_parameters"]), "`null`", field="target_parameters")


@rule(
    "MR128",
    LoraConfig,
    Effect.NOT_FUSABLE,
    file=CONFIG_FILE,
    why="trained token rows replace rows of the embedding, which a bundle leaves as it is",
    remedy="use the adapter by itself with PEFT, or train without `trainable_token_indices`",
)
def tokens_are_trained(config: LoraConfig) -> Observations:
    """The adapter trains rows of the embedding."""
    if _is_set(config.value.get("trainable_token_indices")):
        found = quote(config.value["trainable_token_indices"])
        yield Observation(found, "`null`", field="trainable_token_indices")


@rule(
    "MR129",
    LoraConfig,
    Effect.NOT_FUSABLE,
    file=CONFIG_FILE,
    why="whole modules are replaced by trained copies; members cannot each replace the same module",
    remedy="use the adapter by itself with PEFT, or train without `modules_to_save`",
)
def modules_are_saved(config: LoraConfig) -> Observations:
    """The adapter replaces whole modules."""
    found = config.value.get("modules_to_save")
    if _is_set(found):
        yield Observation(_name_items(found), "`null`", field="modules_to_save")


@rule(
    "MR130",
    LoraConfig,
    Effect.NOT_FUSABLE,
    file=CONFIG_FILE,
    why="the adapter comes with a head of its own for its task, and a bundle shares the base's output layer",
    remedy="keep the adapter for its task; fuse adapters of one generating model",
)
def task_has_head(config: LoraConfig) -> Observations:
    """The task needs a head of its own."""
    if config.has_head:
        yield Observation(quote(config.value["task_type"]), '`"CAUSAL_LM"` or `null`', field="task_type")


def initialisation(config: LoraConfig) -> Any:
    """Return ``init_lora_weights``, a name in lower case."""
    found = config.value.get("init_lora_weights")
    return found.lower() if isinstance(found, str) else found


def _is_set(value: Any) -> bool:
    return value is not None and value is not False and value not in ([], {}, "", 0)


def _name_items(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(quote_name(item) for item in value[:5])
    return quote(value)
