"""Rules about what vLLM makes of an adapter: asked by ``--for vllm`` alone."""

from __future__ import annotations

from typing import Any

from ...schemas.finding import Effect, Severity
from ...schemas.quotation import quote, quote_name, quote_names
from ..methods import EMBEDDING_LAYERS, OUTPUT_LAYERS
from ..vllm import (
    HEADS,
    PLAIN_INITIALISATIONS,
    REFUSED_OPTIONS,
    REQUIRED_FIELDS,
    VLLM,
    WITHOUT_ADAPTERS,
    WITHOUT_VOCABULARY_LAYERS,
    EngineCase,
    is_of_experts,
    is_of_tower,
    is_read,
    least_max_rank,
)
from .rule import CONFIG_FILE, WEIGHTS_FILE, Observation, Observations, rule


@rule(
    "MR801",
    EngineCase,
    Effect.NOT_SERVED,
    file=CONFIG_FILE,
    why=f"{VLLM} refuses to load the adapter: it computes W x + s B A x and nothing else",
    remedy="serve it with PEFT, or train a plain LoRA; for an initialisation, convert it with "
    "`save_pretrained(..., path_initial_model_for_weight_conversion=...)`",
)
def option_is_not_served(case: EngineCase) -> Observations:
    """The adapter uses an option of PEFT that vLLM does not have."""
    value = case.config.value
    for name in REFUSED_OPTIONS:
        if value.get(name):
            yield Observation(quote(value[name]), "no such option", field=name)
    if value.get("bias", "none") != "none":
        yield Observation(quote(value["bias"]), '`"none"`', field="bias")
    start = value.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in PLAIN_INITIALISATIONS:
        yield Observation(quote(start), "`true`", field="init_lora_weights")


@rule(
    "MR802",
    EngineCase,
    Effect.NOT_SERVED,
    file=CONFIG_FILE,
    why=f"{VLLM} refuses an adapter that replaces whole modules, other than the head of a classifier",
    remedy="train without `modules_to_save`, or serve it with PEFT",
)
def replaced_modules_are_not_served(case: EngineCase) -> Observations:
    """The adapter replaces modules."""
    found = case.config.value.get("modules_to_save")
    if found and not (isinstance(found, list) and HEADS.issuperset(map(str, found))):
        yield Observation(_name_items(found), "none", field="modules_to_save")


@rule(
    "MR803",
    EngineCase,
    Effect.NOT_SERVED,
    file=CONFIG_FILE,
    why=f"{VLLM} refuses the adapter: it makes room for `--max-lora-rank`, and counts the ranks that the "
    "config names, whether a module has them or not",
    remedy="no engine has room for it; train with a smaller rank",
)
def rank_is_above_engine(case: EngineCase) -> Observations:
    """A rank is larger than the engine makes room for."""
    rank, limit = case.max_rank, case.limits.max_rank
    if rank is None or rank <= limit:
        return
    least = least_max_rank(rank)
    remedy = f"start the engine with `--max-lora-rank {least}`, and state it here too" if least else None
    yield Observation(f"rank {quote(rank)}", f"at most {limit}", field="r", remedy=remedy)


@rule(
    "MR804",
    EngineCase,
    Effect.NOT_SERVED,
    file=WEIGHTS_FILE,
    why=f"{VLLM} refuses the whole file for one tensor that it does not know",
    remedy="remove the tensor if the adapter answers the same without it; PEFT reads the file as it is",
)
def tensor_is_not_read(case: EngineCase) -> Observations:
    """A tensor has a name that vLLM does not read."""
    for name in case.tensors:
        if not is_read(name):
            found = f"the tensor {quote_name(name)}"
            yield Observation(found, "names that end with `.lora_A.weight` or `.lora_B.weight`", tensor=name)


@rule(
    "MR805",
    EngineCase,
    Effect.NOT_SERVED,
    file=CONFIG_FILE,
    why=f"{VLLM} refuses a config without it, where PEFT takes a default",
    remedy="write the value that the adapter was trained with",
)
def field_is_required(case: EngineCase) -> Observations:
    """The config lacks a field that vLLM requires."""
    for name in REQUIRED_FIELDS:
        if name not in case.config.value:
            yield Observation("nothing", f"`{name}`", field=name)


@rule(
    "MR806",
    EngineCase,
    Effect.NOT_SERVED,
    file=WEIGHTS_FILE,
    why=f"{VLLM} loads the adapter and silently leaves these modules out, unless it is started with "
    "`--enable-tower-connector-lora` and has that for the base's class",
    remedy="serve it with PEFT, or train the language model alone",
)
def tower_is_left_out(case: EngineCase) -> Observations:
    """The adapter changes modules for images or sound."""
    for name in case.tensors:
        if is_of_tower(name):
            yield Observation(f"the tensor {quote_name(name)}", "the language model's modules", tensor=name)


@rule(
    "MR807",
    EngineCase,
    Severity.WARN,
    file=WEIGHTS_FILE,
    why=f"each class of mixtures in {VLLM} takes the experts' factors in one layout, of all projections or "
    "of none, and on a GPU alone; whether this file has the layout of its base's class is not checked",
    remedy="load it into an engine before it is relied on",
)
def experts_depend_on_class(case: EngineCase) -> Observations:
    """The adapter changes the experts of a mixture."""
    for name in case.tensors:
        if is_of_experts(name):
            yield Observation(f"the tensor {quote_name(name)}", "other modules", tensor=name)


@rule(
    "MR808",
    EngineCase,
    Effect.NOT_SERVED,
    file="config.json",
    why=f"{VLLM} does not start with adapters for this base: its class has none",
    remedy="serve the adapter with PEFT",
)
def base_takes_no_adapters(case: EngineCase) -> Observations:
    """VLLM has no adapters for the base's class."""
    for name in case.limits.architectures:
        if name in WITHOUT_ADAPTERS:
            yield Observation(quote_name(name), "a class with adapters", field="architectures")


@rule(
    "MR809",
    EngineCase,
    Effect.NOT_SERVED,
    file=WEIGHTS_FILE,
    why=f"{VLLM} refuses the adapter: for the base's class it has adapters of linear layers only",
    remedy="train without the embedding and the output layer, or serve it with PEFT",
)
def vocabulary_layers_are_not_served(case: EngineCase) -> Observations:
    """The adapter changes the embedding or the output layer of a class that has no adapters for them."""
    if WITHOUT_VOCABULARY_LAYERS.isdisjoint(case.limits.architectures):
        return
    layers = OUTPUT_LAYERS | EMBEDDING_LAYERS
    for name in case.tensors:
        if ".lora_" in name and not layers.isdisjoint(name.split(".")):
            yield Observation(f"the tensor {quote_name(name)}", "tensors of linear layers", tensor=name)


def _name_items(value: Any) -> str:
    return quote_names(list(map(str, value))) if isinstance(value, list) else quote(value)
