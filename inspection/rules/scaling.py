"""Rules about rank and alpha, and about the patterns that set them per module."""

from __future__ import annotations

from collections.abc import Iterator

from ...schemas.finding import Effect, Severity
from ...schemas.quotation import quote, quote_name
from ..config import SCALE_FIELDS, Config, LoraConfig, as_alpha, as_rank
from ..patterns import MAX_PATTERN_CHARACTERS, Pattern, Standing
from ..tensors import Tensors, count_experts
from .rule import CONFIG_FILE, Observation, Observations, rule

_GUESS = "without rank and alpha every result is scaled by a guess"


@rule(
    "MR111",
    LoraConfig,
    Effect.BROKEN,
    file=CONFIG_FILE,
    why=_GUESS,
    remedy="write the rank that the adapter was trained with, a whole number",
)
def rank_is_unusable(config: LoraConfig) -> Observations:
    """`r` is missing or not a rank."""
    if config.rank is None:
        yield Observation(_found(config, "r"), "a whole number from 1 on", field="r")


@rule(
    "MR112",
    LoraConfig,
    Effect.BROKEN,
    file=CONFIG_FILE,
    why=_GUESS + "; PEFT silently takes 8 where alpha is missing",
    remedy="write the alpha that the adapter was trained with, a number other than zero",
)
def alpha_is_unusable(config: LoraConfig) -> Observations:
    """`lora_alpha` is missing or not a number other than zero."""
    if config.alpha is None:
        yield Observation(_found(config, "lora_alpha"), "a number other than zero", field="lora_alpha")


@rule(
    "MR113",
    LoraConfig,
    Effect.BROKEN,
    file=CONFIG_FILE,
    why="PEFT cannot build the layers, or builds them with another rank or scale than was trained",
    remedy="write an object from module name to rank (whole number) or alpha (a number other than zero); an "
    "empty object where there is no entry",
)
def pattern_field_is_malformed(config: LoraConfig) -> Observations:
    """A pattern field does not map names to numbers."""
    for name, read, expected in (
        ("rank_pattern", as_rank, "a whole number from 1 on"),
        ("alpha_pattern", as_alpha, "a number other than zero"),
    ):
        if name not in config.value:
            continue
        found = config.value[name]
        if not isinstance(found, dict):
            yield Observation(quote(found), "an object", field=name)
            continue
        for pattern, value in found.items():
            if read(value) is None:
                yield Observation(quote(value), expected, field=f"{name}.{pattern}")


@rule(
    "MR114",
    LoraConfig,
    Effect.BROKEN,
    file=CONFIG_FILE,
    why="loaders stop with an error of their regular expression engine",
    remedy="correct the expression, or list the module names",
)
def pattern_is_broken(config: LoraConfig) -> Observations:
    """A pattern is not a regular expression."""
    for name, pattern in config.declared_patterns:
        if pattern.standing is Standing.BROKEN:
            yield Observation(quote_name(pattern.text), "a regular expression", field=_place(name, pattern))


@rule(
    "MR115",
    LoraConfig,
    Effect.NOT_FUSABLE,
    file=CONFIG_FILE,
    why="it sets the scale of each module, and no engine with a time bound reads it as PEFT does",
    remedy="list the module names instead of an expression with look-around, back-references or great length",
)
def pattern_cannot_be_evaluated(config: LoraConfig) -> Observations:
    """A rank or alpha pattern cannot be evaluated safely."""
    for name, pattern in _scale_patterns(config):
        if pattern.standing in (Standing.TOO_LONG, Standing.TOO_COSTLY, Standing.UNSUPPORTED):
            yield Observation(
                f"{quote_name(pattern.text)} ({pattern.standing})",
                f"an expression that RE2 reads, of at most {MAX_PATTERN_CHARACTERS} characters",
                field=_place(name, pattern),
            )


@rule(
    "MR116",
    LoraConfig,
    Severity.WARN,
    file=CONFIG_FILE,
    why="PEFT and vLLM match with backtracking, which may never end for a name that almost fits",
    remedy="list the module names, or write the expression without a repeat inside a repeat",
)
def pattern_may_hang_loaders(config: LoraConfig) -> Observations:
    """A pattern repeats a repeat."""
    for name, pattern in config.declared_patterns:
        if pattern.nests_repeats:
            place = _place(name, pattern)
            yield Observation(quote_name(pattern.text), "no repeat inside a repeated group", field=place)


@rule(
    "MR117",
    Tensors,
    Severity.WARN,
    file=CONFIG_FILE,
    why="an entry without effect is usually a misspelt module name: the module has the default rank or scale",
    remedy="correct the name, or remove the entry",
)
def pattern_matches_nothing(tensors: Tensors) -> Observations:
    """A rank or alpha pattern matches no module."""
    if not tensors.pairs or not tensors.resolution.is_complete:
        return
    for name, pattern in _scale_patterns(tensors.config):
        if pattern.can_match and (name, pattern.text) not in tensors.resolution.used:
            place = _place(name, pattern)
            yield Observation("no module that takes it", "at least one", field=place)


@rule(
    "MR118",
    Tensors,
    Effect.NOT_FUSABLE,
    file=CONFIG_FILE,
    why="which module has which scale cannot be worked out in reasonable time",
    remedy="use fewer patterns; one module name per entry is the cheapest",
)
def patterns_are_too_costly(tensors: Tensors) -> Observations:
    """Matching the patterns takes too long."""
    if not tensors.resolution.is_complete:
        count = sum(len(tensors.config.patterns(name)) for name in SCALE_FIELDS)
        yield Observation(f"{count} patterns for {len(tensors.pairs)} modules", "a fraction of a second")


@rule(
    "MR119",
    Tensors,
    Effect.BROKEN,
    file=CONFIG_FILE,
    why="loaders build layers of the config's rank and fail on the tensors, or scale by the wrong rank",
    remedy="restore the config that the adapter was saved with",
)
def rank_disagrees_with_tensors(tensors: Tensors) -> Observations:
    """The config's rank is not that of the tensors."""
    for pair in tensors.pairs:
        declared = tensors.resolution.ranks.get(pair.path)
        if pair.a is None or not pair.is_sound or declared is None or count_experts(pair, declared):
            continue
        swapped = ": A and B are swapped or transposed" if pair.a.shape[1] == declared else ""
        yield Observation(
            f"rank {pair.a.shape[0]} in the tensors, {declared} in the config{swapped}",
            "the same rank",
            tensor=pair.a.name,
            field="r",
        )


@rule(
    "MR120",
    LoraConfig,
    Effect.NOT_FUSABLE,
    file=CONFIG_FILE,
    why="PEFT subtracts what the factors add; a bundle holds positive scalings only",
    remedy="negate B and alpha, which is the same adapter, or use it by itself with PEFT",
)
def alpha_is_negative(config: LoraConfig) -> Observations:
    """An alpha is below zero."""
    stated = [("lora_alpha", config.value.get("lora_alpha"))]
    stated += [(f"alpha_pattern.{name}", value) for name, value in config.patterns("alpha_pattern").items()]
    for name, value in stated:
        if (as_alpha(value) or 0) < 0:
            yield Observation(quote(value), "a positive number", field=name)


def _found(config: LoraConfig, name: str) -> str:
    return quote(config.value[name]) if name in config.value else "nothing"


def _scale_patterns(config: Config) -> Iterator[tuple[str, Pattern]]:
    return (found for found in config.declared_patterns if found[0] in SCALE_FIELDS)


def _place(name: str, pattern: Pattern) -> str:
    return f"{name}.{pattern.text}" if name in SCALE_FIELDS else name
