"""Rules about the modules that a config targets. The tensors decide; the declaration is compared."""

from __future__ import annotations

import re

from ...schemas.finding import Effect, Severity
from ...schemas.quotation import quote, quote_name, quote_names
from ..config import Config, LoraConfig
from ..methods import EMBEDDING_LAYERS, OUTPUT_LAYERS
from ..tensors import Tensors
from .rule import CONFIG_FILE, Observation, Observations, rule

_ALL_LINEAR = "all-linear"
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
    Severity.WARN,
    file=CONFIG_FILE,
    why="PEFT builds only the declared modules and silently drops the other tensors; here the tensors count",
    remedy="write all modules that the file holds into `target_modules`",
)
def targets_are_narrower_than_tensors(tensors: Tensors) -> Observations:
    """The file holds modules that the config does not target."""
    matched = match_targets(tensors)
    if matched is None:
        return
    left_out = [pair.path for pair in tensors.pairs if pair.path not in matched]
    if left_out:
        yield Observation(
            f"{len(left_out)} of {len(tensors.pairs)} modules are not declared, such as "
            f"{quote_name(left_out[0])}",
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
    if not tensors.pairs:
        return
    names = set(tensors.config.targets or ())
    depths = _depths_of(names)
    absent = names.difference(*(_tails_of(pair.path, depths) for pair in tensors.pairs))
    matched = match_targets(tensors) if isinstance(tensors.config.value.get("target_modules"), str) else None
    if absent:
        yield Observation(
            f"no tensors for {quote_names(sorted(absent))}", "tensors for every entry", field="target_modules"
        )
    elif matched is not None and not matched:
        yield Observation("an expression that matches no module", "one that does", field="target_modules")


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
    """Return the modules of the file that the config targets; None if they cannot be determined."""
    declared = tensors.config.value.get("target_modules")
    paths = [pair.path for pair in tensors.pairs]
    if isinstance(declared, str) and declared and declared != _ALL_LINEAR:
        return _match_text(tensors.config, paths)
    if not tensors.config.targets:
        return None
    names = set(tensors.config.targets)
    depths = _depths_of(names)
    return {path for path in paths if not names.isdisjoint(_tails_of(path, depths))}


def _depths_of(names: set[str]) -> list[int]:
    """Return the numbers of dots that occur in the names."""
    return sorted({name.count(".") for name in names})


def _tails_of(path: str, depths: list[int]) -> list[str]:
    """Return the ends of a path that have one of these numbers of dots: the path after a dot, or whole."""
    if depths == [0]:
        return [path.rpartition(".")[2]]
    parts = path.split(".")
    return [".".join(parts[-depth - 1 :]) for depth in depths if depth < len(parts)]


def _match_text(config: Config, paths: list[str]) -> set[str] | None:
    (pattern,) = config.patterns_in("target_modules")
    if not pattern.can_match:
        return None
    matched = set()
    with config.budget.running():
        for path in paths:
            if config.budget.is_spent:
                return None
            if pattern.matches(path):
                matched.add(path)
    return matched


def _last(name: str) -> str:
    return name.rpartition(".")[2]
