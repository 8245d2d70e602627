"""Rules that compare an adapter with the base model it is meant for."""

from __future__ import annotations

import re

from ...schemas.finding import Effect, Severity
from ...schemas.quotation import quote, quote_name, quote_names
from ..base_facts import LINEAR_KINDS, BaseComparison, path_in_larger_model
from ..config import LoraConfig
from ..keys import TensorKind, strip_marks
from ..methods import EMBEDDING_LAYERS, OUTPUT_LAYERS
from ..targets import Declaration, NotMatched, SavedModules
from .rule import CONFIG_FILE, WEIGHTS_FILE, Observation, Observations, rule

_NUMBER = re.compile(r"\d+")
_LANGUAGE_MODEL = "language_model."
_OTHER_CLASS = "in another class of the same checkpoint than the text model that the adapter was trained on"


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
        if pair.path in comparison.paths:
            continue
        reason = key = ""
        if _NUMBER.sub("*", pair.path) in shapes:
            reason = key = ": the base has fewer layers"
        elif pair.path.removeprefix(_LANGUAGE_MODEL) in facts.modules:
            reason = key = f": the base has it without {quote_name(_LANGUAGE_MODEL)}"
        elif inside := path_in_larger_model(pair.path, facts.modules):
            reason, key = f": the base has it as {quote_name(inside)}, {_OTHER_CLASS}", _OTHER_CLASS
        yield Observation(
            f"{quote_name(pair.path)}{reason}",
            f"a module of {quote_name(facts.name)}",
            tensor=pair.any_name,
            reason=key,
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
    if comparison.tensors.config.value.get("use_bdlora") is not None:
        return
    for pair in comparison.tensors.modules:
        module = comparison.module_of(pair)
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
    for pair in comparison.modules():
        module = comparison.module_of(pair)
        if module is None or module.kind not in LINEAR_KINDS:
            kind = "no layer with features" if module is None else quote_name(module.kind)
            yield Observation(kind, "a linear layer", tensor=pair.any_name, reason=kind)


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
    paths = [(pair.path, comparison.paths.get(pair.path)) for pair in comparison.modules()]
    renamed = [(old, new) for old, new in paths if new is not None and old != new]
    if comparison.tensors.config.value.get("layer_replication") is not None:
        return
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
    covered = {comparison.paths[pair.path] for pair in comparison.modules()}
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
    vocabulary, tensors = comparison.facts.vocabulary, comparison.tensors
    for entry in (*tensors.of_kind(TensorKind.FULL_WEIGHT), *tensors.of_kind(TensorKind.SAVED)):
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
    modules = [comparison.module_of(pair) for pair in comparison.tensors.modules]
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


@rule(
    "MR509",
    BaseComparison,
    Effect.BROKEN,
    file=CONFIG_FILE,
    why="PEFT puts a layer in the place of everything that the config declares, and stops with a ValueError "
    "where it has none",
    remedy="declare linear layers only, by a list of names or a narrower expression",
)
def declared_module_is_no_layer(comparison: BaseComparison) -> Observations:
    """The config declares modules of the base that PEFT cannot adapt."""
    refused = [path for path in _declared(comparison) if not comparison.facts.adaptable[path]]
    if refused:
        found = f"{len(refused)} modules, such as {quote_name(refused[0])}"
        yield Observation(found, "layers that PEFT can adapt", field="target_modules")


@rule(
    "MR510",
    BaseComparison,
    Effect.BROKEN,
    file=CONFIG_FILE,
    why="with `init_lora_weights` false PEFT fills the factors that the file lacks with random numbers",
    remedy="declare the modules of the file only, or write true for `init_lora_weights`",
)
def declared_module_starts_random(comparison: BaseComparison) -> Observations:
    """Declared modules of the base without tensors would get random factors."""
    if comparison.tensors.config.value.get("init_lora_weights") is not False:
        return
    own = set(comparison.paths.values())
    lacking = [path for path in _declared(comparison) if path not in own and comparison.facts.adaptable[path]]
    if lacking:
        found = f"no tensors for {len(lacking)} modules, such as {quote_name(lacking[0])}"
        yield Observation(found, "tensors for every declared module", field="target_modules")


@rule(
    "MR511",
    BaseComparison,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="PEFT asks the file for every module that it saves whole, and stops with a KeyError",
    remedy="restore the weights that the training wrote, or remove the name from `modules_to_save`",
)
def saved_module_is_missing(comparison: BaseComparison) -> Observations:
    """A saved module of the base has no tensors in the file."""
    config = comparison.tensors.config
    kinds = (TensorKind.SAVED, TensorKind.FULL_WEIGHT, TensorKind.FULL_BIAS)
    entries = [entry for kind in kinds for entry in comparison.tensors.of_kind(kind)]
    there = {strip_marks(entry.name)[0] for entry in entries}
    for pattern in config.patterns_in("modules_to_save"):
        saved = SavedModules((pattern,), config.budget)
        is_in_base = any(saved.hold(path) for path in comparison.facts.adaptable)
        if is_in_base and not any(saved.hold(name) for name in there):
            yield Observation(
                f"no tensors of {quote_name(pattern.text)}", "its weights", field="modules_to_save"
            )


@rule(
    "MR512",
    BaseComparison,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="the base never calls this embedding, it only lends its weight to those of encoder and decoder",
    remedy="train other modules; nothing of this adapter takes effect",
)
def shared_module_is_adapted(comparison: BaseComparison) -> Observations:
    """Every module of the adapter is one that the base never calls."""
    tensors, shared = comparison.tensors, comparison.facts.shared
    factors = tensors.of_kind(TensorKind.EMBEDDING_FACTOR)
    paths = {strip_marks(entry.name)[0].partition(".lora_")[0] for entry in factors}
    if paths and not tensors.pairs and paths <= shared and not tensors.of_kind(TensorKind.SAVED):
        yield Observation(quote_names(sorted(paths)), "modules that the base calls", tensor=factors[0].name)


def _declared(comparison: BaseComparison) -> list[str]:
    """Return the modules of the base that the config declares; none if that cannot be determined."""
    config, facts = comparison.tensors.config, comparison.facts
    if not isinstance(config, LoraConfig):
        return []
    try:
        declaration = Declaration(config, default=facts.default_targets)
        with config.budget.running():
            return [path for path in facts.adaptable if path and declaration.names(path)]
    except NotMatched:
        return []
