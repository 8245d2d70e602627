"""Rules about the modules that a config targets. The tensors decide; the declaration is compared."""

from __future__ import annotations

import re

from ...schemas.finding import Effect, Severity
from ...schemas.quotation import quote, quote_name, quote_names
from ..base_facts import BaseFacts
from ..config import Config, LoraConfig
from ..methods import EMBEDDING_LAYERS, OUTPUT_LAYERS
from ..targets import Declaration, Names, NotMatched, present_names
from ..tensors import Pair, Tensors
from .rule import CONFIG_FILE, Observation, Observations, rule

_TWO_NAMES = re.compile(r"[,;\s]")
_OLD_GPT2 = re.compile(r"(.*/)?(distil)?gpt2(-(medium|large|xl))?")


@rule(
    "MR131",
    LoraConfig,
    Severity.WARN,
    file=CONFIG_FILE,
    why="PEFT silently falls back to its own list for the architecture, often q and v alone",
    remedy="write the names of the modules that were trained",
)
def targets_are_missing(config: LoraConfig) -> Observations:
    """The config names no target modules."""
    found = config.value.get("target_modules")
    if found in (None, "", []) and not config.value.get("target_parameters"):
        yield Observation(
            quote(found) if "target_modules" in config.value else "nothing",
            "module names",
            field="target_modules",
        )


@rule(
    "MR132",
    LoraConfig,
    Severity.WARN,
    file=CONFIG_FILE,
    why="names are compared as a whole, so an entry with two of them matches no module, silently",
    remedy="make it two entries",
)
def target_holds_two_names(config: LoraConfig) -> Observations:
    """One target entry holds several names."""
    for name in config.targets or ():
        if _TWO_NAMES.search(name):
            yield Observation(quote(name), "one module name per entry", field="target_modules")


@rule(
    "MR133",
    LoraConfig,
    Effect.BROKEN,
    file=CONFIG_FILE,
    why="PEFT stops with a TypeError",
    remedy="write a list of module names, or one regular expression",
)
def targets_are_malformed(config: LoraConfig) -> Observations:
    """`target_modules` is neither text nor a list of names."""
    found = config.value.get("target_modules")
    if found is not None and not isinstance(found, str) and config.targets is None:
        yield Observation(quote(found), "a list of names, or text", field="target_modules")


@rule(
    "MR134",
    Tensors,
    Effect.UNDECLARED,
    file=CONFIG_FILE,
    sees_base=True,
    why="PEFT builds only the declared modules: it silently drops the tensors of others, and stops where it "
    "has none left",
    remedy="write all modules that the file holds into `target_modules`; if they belong to the adapter, "
    "`--trust-tensors` fuses them as they are",
)
def modules_are_undeclared(tensors: Tensors) -> Observations:
    """The file holds modules that the config does not declare."""
    declared = match_targets(tensors)
    if declared is None:
        return
    left_out = [pair for pair in tensors.modules if pair.path not in declared]
    if left_out:
        yield Observation(
            f"{len(left_out)} of {len(tensors.modules)} modules are not declared, such as "
            f"{quote_name(left_out[0].path)}",
            "a declaration of every module",
            field="target_modules",
        )


@rule(
    "MR135",
    Tensors,
    Severity.WARN,
    file=CONFIG_FILE,
    why="a declared module without tensors stays as it is in the base; was it meant to be trained?",
    remedy="remove the entry, or correct the name",
)
def target_matches_nothing(tensors: Tensors) -> Observations:
    """A target entry matches no module of the file."""
    if not tensors.modules:
        return
    names = Names.of(tensors.config.targets or ())
    absent = set(names.names)
    for pair in tensors.modules:
        absent.difference_update(names.found_in(pair.path))
    if absent:
        yield Observation(
            f"no tensors for {quote_names(sorted(absent))}", "tensors for every entry", field="target_modules"
        )


@rule(
    "MR136",
    LoraConfig,
    Effect.NOT_FUSABLE,
    file=CONFIG_FILE,
    why="embedding and output layer are shared by all members, often tied to each other, and PEFT then also "
    "saves them in full",
    remedy="train without them, or use the adapter by itself with PEFT",
)
def vocabulary_layers_are_targeted(config: LoraConfig) -> Observations:
    """The config targets the embedding or the output layer."""
    if config.has_tensors:
        return
    layers = [name for name in config.targets or () if _last(name) in OUTPUT_LAYERS | EMBEDDING_LAYERS]
    if layers:
        yield Observation(
            quote_names(layers), "linear layers between embedding and output", field="target_modules"
        )


@rule(
    "MR137",
    LoraConfig,
    Severity.NOTE,
    file=CONFIG_FILE,
    why="GPT-2 keeps its weights transposed (Conv1D); PEFT corrects the flag with a warning, and A and B are "
    "the same either way",
    remedy="nothing needs doing; write `true` to silence PEFT",
)
def fan_in_fan_out_is_wrong(config: LoraConfig) -> Observations:
    """`fan_in_fan_out` does not fit the layers of the base."""
    base = config.text("base_model_name_or_path")
    if base and _OLD_GPT2.fullmatch(base) and not config.value.get("fan_in_fan_out"):
        found = quote(config.value.get("fan_in_fan_out"))
        yield Observation(f"{found} for GPT-2", "`true`", field="fan_in_fan_out")


@rule(
    "MR138",
    LoraConfig,
    Effect.BROKEN,
    file=CONFIG_FILE,
    why="PEFT refuses the combination with a ValueError before it reads a tensor",
    remedy="write the targets as a list, or drop `layers_to_transform` and `layers_pattern`",
)
def layers_contradict_targets(config: LoraConfig) -> Observations:
    """Layers are chosen beside targets that are one text, or a layers pattern has no layers beside it."""
    layers, pattern = config.value.get("layers_to_transform"), config.value.get("layers_pattern")
    if isinstance(config.value.get("target_modules"), str):
        for name, value in (("layers_to_transform", layers), ("layers_pattern", pattern)):
            if value is not None:
                yield Observation(f"{quote(value)} beside one text", "a list of targets", field=name)
    elif pattern and layers is None:
        yield Observation("no `layers_to_transform`", "the layers it applies to", field="layers_pattern")


def match_targets(tensors: Tensors) -> set[str] | None:
    """Return the modules of the file that the config declares; None if they cannot be determined.

    With the base at hand a module is known by what the base calls it, and without by what transformers may
    call it today.
    """
    facts = tensors.facts
    declared = set()
    try:
        declaration = Declaration(tensors.config, default=facts.default_targets if facts else None)
        with tensors.config.budget.running():
            for pair in tensors.modules:
                names = _compared_names(pair, facts)
                if _comes_with_another(pair, tensors.config) or any(map(declaration.names, names)):
                    declared.add(pair.path)
    except NotMatched:
        return None
    return declared


def _compared_names(pair: Pair, facts: BaseFacts | None) -> list[str]:
    """Return the names of a module that PEFT may compare with the declaration."""
    if facts is None:
        return present_names(pair.path)
    present = facts.present.get(pair.path, pair.path)
    # Separate experts are declared by their own names, and become one parameter afterwards.
    return [present] if present in facts.adaptable else [pair.path]


def _comes_with_another(pair: Pair, config: Config) -> bool:
    """Return whether PEFT adapts a module without a declaration: inside another, or tied to the embedding."""
    is_tied = config.value.get("ensure_weight_tying") is True
    return pair.is_inside or (is_tied and _last(pair.path) in OUTPUT_LAYERS | EMBEDDING_LAYERS)


def _last(name: str) -> str:
    return name.rpartition(".")[2]
