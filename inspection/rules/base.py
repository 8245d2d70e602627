"""Rules that compare an adapter with the base model it is meant for."""

from __future__ import annotations

import re

from ...schemas.finding import Effect, Severity
from ...schemas.quotation import quote, quote_name
from ..base_facts import LINEAR_KINDS, BaseComparison
from ..keys import TensorKind
from ..methods import EMBEDDING_LAYERS, OUTPUT_LAYERS
from .rule import CONFIG_FILE, WEIGHTS_FILE, Observation, Observations, rule

_NUMBER = re.compile(r"\d+")
_LANGUAGE_MODEL = "language_model."


@rule(
    "MR501",
    BaseComparison,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="PEFT silently drops tensors of modules that the base lacks",
    remedy="name the base that the adapter was trained on",
)
def module_is_not_in_base(comparison: BaseComparison) -> Observations:
    """The base has no such module."""
    facts = comparison.facts
    shapes = {_NUMBER.sub("*", path) for path in facts.modules}
    for pair in comparison.tensors.pairs:
        if pair.path in facts.present:
            continue
        reason = ""
        if _NUMBER.sub("*", pair.path) in shapes:
            reason = ": the base has fewer layers"
        elif pair.path.removeprefix(_LANGUAGE_MODEL) in facts.modules:
            reason = f": the base has it without {quote_name(_LANGUAGE_MODEL)}"
        yield Observation(
            f"{quote_name(pair.path)}{reason}", f"a module of {quote_name(facts.name)}", tensor=pair.any_name
        )


@rule(
    "MR502",
    BaseComparison,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="the product cannot be added to the module's output",
    remedy="name the base that the adapter was trained on",
)
def shape_disagrees_with_base(comparison: BaseComparison) -> Observations:
    """A module has other features in the base."""
    for pair in comparison.tensors.pairs:
        module = comparison.facts.modules.get(comparison.facts.present.get(pair.path, ""))
        if module is None or not pair.is_sound or pair.a is None or pair.b is None:
            continue
        found = (pair.a.shape[1], pair.b.shape[0])
        if found != (module.in_features, module.out_features):
            yield Observation(
                f"{found[0]} in, {found[1]} out",
                f"{module.in_features} in, {module.out_features} out",
                tensor=pair.any_name,
            )


@rule(
    "MR503",
    BaseComparison,
    Effect.NOT_FUSABLE,
    file=WEIGHTS_FILE,
    why="a bundle adds s B A x to linear modules only",
    remedy="use the adapter by itself with PEFT",
)
def module_is_not_linear(comparison: BaseComparison) -> Observations:
    """A module is not a linear layer in the base."""
    for pair in comparison.tensors.pairs:
        path = comparison.facts.present.get(pair.path)
        module = comparison.facts.modules.get(path or "")
        if path is not None and (module is None or module.kind not in LINEAR_KINDS):
            kind = "no layer with features" if module is None else quote_name(module.kind)
            yield Observation(kind, "a linear layer", tensor=pair.any_name)


@rule(
    "MR504",
    BaseComparison,
    Severity.NOTE,
    file=WEIGHTS_FILE,
    why="transformers 5 gave modules new paths; PEFT converts an adapter, a bundle stores the new ones",
    remedy="nothing needs doing",
)
def modules_are_renamed(comparison: BaseComparison) -> Observations:
    """Modules go by other names in the base today."""
    renamed = [(old, new) for old, new in sorted(comparison.facts.present.items()) if old != new]
    if renamed:
        old, new = renamed[0]
        yield Observation(
            f"{len(renamed)} modules under old names, such as {quote_name(old)}", quote_name(new)
        )


@rule(
    "MR505",
    BaseComparison,
    Severity.NOTE,
    file=WEIGHTS_FILE,
    why="a module without tensors stays as it is in the base",
    remedy="nothing needs doing if the modules were left out on purpose",
)
def base_is_covered_in_part(comparison: BaseComparison) -> Observations:
    """Modules of the adapted kinds are left out."""
    facts = comparison.facts
    covered = {facts.present[pair.path] for pair in comparison.tensors.pairs if pair.path in facts.present}
    kinds = {_NUMBER.sub("*", path) for path in covered}
    alike = [path for path in facts.modules if _NUMBER.sub("*", path) in kinds]
    left_out = [path for path in alike if path not in covered]
    if left_out:
        found = f"{len(covered)} of {len(alike)}, not {quote_name(left_out[0])}"
        yield Observation(found, "every module of these kinds")


@rule(
    "MR506",
    BaseComparison,
    Effect.NOT_FUSABLE,
    file=WEIGHTS_FILE,
    why="the adapter was trained with a resized vocabulary; loaders stop with a bare shape error",
    remedy="resize the base's embedding as in training and use the adapter by itself with PEFT",
)
def vocabulary_is_resized(comparison: BaseComparison) -> Observations:
    """The file holds a vocabulary of another size than the base's."""
    vocabulary = comparison.facts.vocabulary
    for entry in comparison.tensors.of_kind(TensorKind.FULL_WEIGHT):
        module = entry.name.rpartition(".")[0].rpartition(".")[2]
        if module in OUTPUT_LAYERS | EMBEDDING_LAYERS and entry.shape and entry.shape[0] != vocabulary:
            yield Observation(f"{entry.shape[0]} tokens", f"{vocabulary} tokens", tensor=entry.name)


@rule(
    "MR507",
    BaseComparison,
    Severity.NOTE,
    file=CONFIG_FILE,
    why="PEFT corrects the flag by the layer's type, with a warning; A and B are the same either way",
    remedy="nothing needs doing; correct the flag to silence PEFT",
)
def fan_in_fan_out_disagrees_with_base(comparison: BaseComparison) -> Observations:
    """`fan_in_fan_out` does not fit the layers of this base."""
    facts = comparison.facts
    modules = [facts.modules.get(facts.present.get(pair.path, "")) for pair in comparison.tensors.pairs]
    kinds = {module.kind for module in modules if module is not None and module.kind in LINEAR_KINDS}
    declared = comparison.tensors.config.value.get("fan_in_fan_out", False)
    if len(kinds) == 1 and declared is not (kinds == {"conv1d"}):
        expected = "`true` for Conv1D layers" if kinds == {"conv1d"} else "`false` for linear layers"
        yield Observation(quote(declared), expected, field="fan_in_fan_out")


@rule(
    "MR508",
    BaseComparison,
    Effect.NOT_FUSABLE,
    file=WEIGHTS_FILE,
    why="the output layer and the embedding are one parameter in this base; what changes one changes both",
    remedy="train without the output layer and the embedding",
)
def tied_module_is_adapted(comparison: BaseComparison) -> Observations:
    """A module that the base ties to another is adapted."""
    if not comparison.facts.ties_embedding:
        return
    for pair in comparison.tensors.pairs:
        if pair.path.rpartition(".")[2] in OUTPUT_LAYERS:
            yield Observation(quote_name(pair.path), "modules of their own", tensor=pair.any_name)
    for entry in comparison.tensors.of_kind(TensorKind.EMBEDDING_FACTOR):
        yield Observation("a factor of the embedding", "modules of their own", tensor=entry.name)
