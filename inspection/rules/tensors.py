"""Rules about the tensors of an adapter: the factors, how they pair, and the other tensors of the file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

from ...schemas.finding import Effect, Severity
from ...schemas.inventory import Dtype
from ...schemas.quotation import quote, quote_name, quote_names
from ..config import LoraConfig
from ..keys import (
    ADAPTER_MARK,
    FOREIGN_PREFIX,
    MAX_PATH_CHARACTERS,
    TensorKind,
    is_module_path,
    name_format,
    strip_marks,
)
from ..methods import EMBEDDING_LAYERS, OUTPUT_LAYERS
from ..tensors import Pair, Tensors
from .rule import WEIGHTS_FILE, Observation, Observations, rule

_EXPERT = re.compile(r"(^|\.)experts?(\.|$)")
_LAYER = re.compile(r"\.(\d+)(?=\.|$)")
_FLOATS = frozenset(Dtype)
# The name of the wrapper that PEFT puts around a module that it saves whole.
_SAVED_PART = ".modules_to_save."
_RETRAIN = "restore the file that the training wrote; one that was gathered wrongly cannot be repaired"


@rule(
    "MR301",
    Tensors,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="loaders find none of their names and silently leave the base as it is",
    remedy="upload the adapter that `save_pretrained` of the PeftModel writes, not the merged or full model",
)
def file_holds_no_lora(tensors: Tensors) -> Observations:
    """The file holds no LoRA tensors."""
    others = {
        TensorKind.FOREIGN,
        TensorKind.EMBEDDING_FACTOR,
        TensorKind.VARIANT,
        TensorKind.MISNAMED,
    }
    if tensors.pairs or not others.isdisjoint(tensors.others):
        return
    if not isinstance(tensors.config, LoraConfig):
        return
    count = len(tensors.header.tensors)
    full = len(tensors.of_kind(TensorKind.FULL_WEIGHT))
    found = f"{count} tensors, {full} of them weights of a full model" if full else f"{count} tensors"
    yield Observation(found, "tensors named `base_model.model.<module>.lora_A.weight`")


@rule(
    "MR302",
    Tensors,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="PEFT finds none of its names and answers with the base's output; some layouts are transposed too",
    remedy="convert the file with the tool that wrote it, to PEFT's names",
)
def names_are_foreign(tensors: Tensors) -> Observations:
    """The tensor names are those of another tool."""
    found = tensors.of_kind(TensorKind.FOREIGN)
    tools = [name_format(entry.name) or "" for entry in found]
    for tool, count in sorted(Counter(tools).items()):
        first = found[tools.index(tool)]
        yield Observation(
            f"{count} names of {tool}",
            "`base_model.model.<module>.lora_A.weight`",
            tensor=first.name,
            reason=tool,
        )


@rule(
    "MR303",
    Tensors,
    Effect.BROKEN_FOR_USE,
    file=WEIGHTS_FILE,
    why="PEFT does not find such names: it warns and answers with the base's output, or with memory that was "
    "never written; the modules are beyond doubt, so a fuse takes them",
    remedy="`meteora-registry repair FOLDER --out FOLDER` writes a copy under PEFT's names; unwrap the model "
    "before `save_pretrained`",
)
def names_carry_marks(tensors: Tensors) -> Observations:
    """Tensor names carry the marks of a wrapper or a prefix, or lack PEFT's own."""
    yield from _observe_marks(tensors, lambda mark: mark != ADAPTER_MARK)


@rule(
    "MR313",
    Tensors,
    Severity.NOTE,
    file=WEIGHTS_FILE,
    why="PEFT finds such names only because it calls the adapter `default` when it loads it",
    remedy="nothing needs doing; `meteora-registry repair FOLDER --out FOLDER` writes a copy without it",
)
def names_carry_adapter(tensors: Tensors) -> Observations:
    """Tensor names carry the name `default`."""
    yield from _observe_marks(tensors, lambda mark: mark == ADAPTER_MARK)


def _observe_marks(tensors: Tensors, accept: Callable[[str], bool]) -> Observations:
    found: dict[tuple[str, ...], list[Pair]] = {}
    for pair in tensors.pairs:
        marks = tuple(filter(accept, pair.marks))
        if marks and not _begins_unknown(pair.path):
            found.setdefault(marks, []).append(pair)
    for marks, pairs in sorted(found.items()):
        yield Observation(
            f"{quote_names(list(marks))} in the names of {len(pairs)} modules",
            "`base_model.model.<module>.lora_A.weight`",
            tensor=pairs[0].any_name,
            reason=" ".join(marks),
        )


@rule(
    "MR304",
    Tensors,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="the text before the module path is not a known prefix, so the module is a guess",
    remedy="rename the tensors to `base_model.model.<module>.lora_A.weight`",
)
def module_path_is_unusable(tensors: Tensors) -> Observations:
    """A name does not hold a valid module path."""
    for pair in tensors.pairs:
        if not is_module_path(pair.path):
            expected = f"letters, digits, `_` and dots, at most {MAX_PATH_CHARACTERS}"
            yield Observation(quote_name(pair.path), expected, tensor=pair.any_name)
        elif _begins_unknown(pair.path):
            yield Observation(
                "the prefix `base_model.` without `model.`",
                "`base_model.model.`",
                tensor=pair.any_name,
                reason="half a prefix",
            )
    prefixes = {_foreign_prefix(pair): pair for pair in tensors.pairs}
    if len(prefixes) > 1:
        listed = [prefix or "none" for prefix in sorted(prefixes, key=str)]
        yield Observation(
            f"{len(listed)} prefixes before PEFT's own: {quote_names(listed)}",
            "one for all tensors",
            tensor=next(iter(prefixes.values())).any_name,
            reason="prefixes",
        )


def _foreign_prefix(pair: Pair) -> str | None:
    """Return the text before PEFT's prefix in the names of a module."""
    marks = (mark.removesuffix(FOREIGN_PREFIX) for mark in pair.marks if mark.endswith(FOREIGN_PREFIX))
    return next(marks, None)


@rule(
    "MR305",
    Tensors,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="two tensors are for the same factor of the same module; which one is loaded is chance",
    remedy="keep one of them; a checkpoint with several adapters must be saved one by one",
)
def factor_stands_twice(tensors: Tensors) -> Observations:
    """Two tensors are the same factor."""
    for pair in tensors.unsound:
        for entry in pair.repeated:
            yield Observation(
                f"a second factor of {quote_name(pair.path)}", "one A and one B", tensor=entry.name
            )


@rule(
    "MR306",
    Tensors,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="PEFT leaves the missing half at its initial value, random or zero, and only warns",
    remedy=_RETRAIN,
)
def factor_is_missing(tensors: Tensors) -> Observations:
    """A module has an A without B, or a B without A."""
    for pair in tensors.unsound:
        if (pair.a is None) != (pair.b is None):
            missing = "B" if pair.b is None else "A"
            yield Observation(f"no {missing}", "both", tensor=pair.any_name)


@rule(
    "MR307",
    Tensors,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="the tensors were saved while they were spread over processes (ZeRO-3, FSDP), or flattened",
    remedy="gather the parameters before saving (`stage3_gather_16bit_weights_on_model_save`, or a full "
    "state dict), and save again",
)
def factor_is_empty_or_flat(tensors: Tensors) -> Observations:
    """A factor has no elements, or fewer than two dimensions."""
    for pair in tensors.unsound:
        for entry in filter(None, (pair.a, pair.b)):
            if entry.elements == 0:
                found = f"shape {list(entry.shape)}: no elements"
                yield Observation(found, "a matrix", tensor=entry.name)
            elif len(entry.shape) < 2:
                yield Observation(f"shape {list(entry.shape)}", "a matrix", tensor=entry.name)


@rule(
    "MR308",
    Tensors,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="the product B A does not exist, or is not the one that was trained",
    remedy="restore the file that the training wrote; A is [rank, in], B is [out, rank]",
)
def factors_disagree_in_rank(tensors: Tensors) -> Observations:
    """A and B disagree in rank."""
    if tensors.config.value.get("use_bdlora") is not None:
        # The blocks of a block-diagonal factor are stored side by side.
        return
    for pair in tensors.unsound:
        if pair.a is None or pair.b is None or min(len(pair.a.shape), len(pair.b.shape)) != 2:
            continue
        disagree = len(pair.a.shape) != len(pair.b.shape) or pair.a.shape[0] != pair.b.shape[1]
        if disagree and pair.a.elements and pair.b.elements:
            yield Observation(
                f"A {list(pair.a.shape)}, B {list(pair.b.shape)}{_explain(pair)}",
                "A [rank, in], B [out, rank]",
                tensor=pair.a.name,
            )


def _explain(pair: Pair) -> str:
    if pair.a is None or pair.b is None or pair.a.shape[1] != pair.b.shape[0]:
        return ""
    if pair.a.shape[0] < pair.a.shape[1]:
        return ""
    return ": swapped or transposed (MLX keeps A as [in, rank])"


@rule(
    "MR309",
    Tensors,
    Effect.NOT_FUSABLE,
    file=WEIGHTS_FILE,
    why="a bundle holds linear modules only",
    remedy="use the adapter by itself with PEFT",
)
def factor_is_of_convolution(tensors: Tensors) -> Observations:
    """A factor has more than two dimensions."""
    for pair in tensors.unsound:
        for entry in filter(None, (pair.a, pair.b)):
            if len(entry.shape) > 2 and entry.elements and not _is_half_matrix(pair):
                found = f"shape {list(entry.shape)}: a convolution"
                yield Observation(found, "a matrix", tensor=entry.name)


def _is_half_matrix(pair: Pair) -> bool:
    """Return whether one factor of a pair is a matrix and the other one is not."""
    return 2 in {len(entry.shape) for entry in (pair.a, pair.b) if entry is not None}


@rule(
    "MR310",
    Tensors,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="PEFT casts float8 without its scales, and integers silently do nothing",
    remedy="save the adapter in float32, float16 or bfloat16",
)
def factor_is_no_float(tensors: Tensors) -> Observations:
    """A factor is neither F64, F32, F16 nor BF16."""
    for pair in tensors.unsound:
        for entry in filter(None, (pair.a, pair.b)):
            if entry.dtype not in _FLOATS:
                yield Observation(entry.dtype, "F32, F16 or BF16", tensor=entry.name)


@rule(
    "MR311",
    Tensors,
    Severity.NOTE,
    file=WEIGHTS_FILE,
    why="no base is held in float64; the factors are cast",
    remedy="nothing needs doing; saving in float32 halves the file",
)
def factors_are_double(tensors: Tensors) -> Observations:
    """Factors are held in float64."""
    entries = [entry for pair in tensors.pairs for entry in (pair.a, pair.b) if entry is not None]
    doubles = [entry for entry in entries if entry.dtype == Dtype.F64]
    if doubles:
        found = f"F64 in {len(doubles)} of {len(entries)} factors"
        yield Observation(found, "F32, F16 or BF16", tensor=doubles[0].name)


@rule(
    "MR312",
    Tensors,
    Severity.WARN,
    file=WEIGHTS_FILE,
    sees_base=True,
    why="a layer without tensors stays as it is in the base, silently",
    remedy="check that the file is complete; set `layers_to_transform` if they were left out on purpose",
)
def layers_are_missing(tensors: Tensors) -> Observations:
    """Some layers have modules that others lack."""
    value = tensors.config.value
    if value.get("layers_to_transform") is not None or value.get("layer_replication") is not None:
        return
    facts = tensors.facts
    paths = [facts.present.get(pair.path, pair.path) if facts else pair.path for pair in tensors.pairs]
    layers = group_by_layer(paths)
    if facts is None:
        holes = _holes_without_base(layers)
    else:
        there = group_by_layer(facts.modules)
        holes = {kind: sorted(there.get(kind, set()) - found) for kind, found in layers.items()}
    missing = {kind: numbers for kind, numbers in sorted(holes.items()) if numbers}
    if missing:
        kind, numbers = next(iter(missing.items()))
        others = f", and {len(missing) - 1} more kinds of modules" if len(missing) > 1 else ""
        yield Observation(
            f"{quote_name(kind)} in {len(layers[kind])} layers, not in {_list_numbers(numbers)}{others}",
            "the same modules in every layer",
        )
    elif gaps := _gaps_of(layers) if facts is None else []:
        yield Observation(f"no tensors for the layers {_list_numbers(gaps)}", "layers without gaps")


def group_by_layer(paths: Iterable[str]) -> dict[str, set[int]]:
    """Return the numbers of the layers that have a module, by its path with the number left out."""
    layers: dict[str, set[int]] = {}
    for path in paths:
        if match := _LAYER.search(path):
            kind = path[: match.start(1)] + "*" + path[match.end(1) :]
            layers.setdefault(kind, set()).add(int(match[1][:9]))
    return layers


def _holes_without_base(layers: dict[str, set[int]]) -> dict[str, list[int]]:
    """Return the layers that lack a module, except where another block of modules is in its place.

    Layers of two kinds, such as those of a hybrid of attention and recurrence, have a block each that the
    others lack.
    """
    blocks: dict[str, set[int]] = {}
    for kind, present in layers.items():
        blocks.setdefault(_block_of(kind), set()).update(present)
    everything = set().union(*layers.values()) if layers else set()
    holes = {}
    for kind, present in layers.items():
        own = blocks[_block_of(kind)]
        instead = set().union(*(other for other in blocks.values() if other.isdisjoint(own)))
        holes[kind] = sorted(everything - present - (instead - own))
    return holes


def _block_of(kind: str) -> str:
    """Return the block of a layer that a module belongs to, such as `layers.*.self_attn`."""
    before, _, after = kind.partition(".*.")
    return f"{before}.*.{after.partition('.')[0]}"


def _gaps_of(layers: dict[str, set[int]]) -> list[int]:
    everything = set().union(*layers.values()) if layers else set()
    if not everything or min(everything) != 0 or max(everything) >= 1 << 16:
        return []
    return sorted(set(range(max(everything) + 1)) - everything)


def _list_numbers(numbers: list[int]) -> str:
    return ", ".join(str(number) for number in numbers[:8])


@rule(
    "MR321",
    Tensors,
    Effect.NOT_FUSABLE,
    file=WEIGHTS_FILE,
    why="DoRA vectors rescale the sum of base and delta",
    remedy="serve the adapter by itself, or train it again without `use_dora`",
)
def file_holds_magnitudes(tensors: Tensors) -> Observations:
    """The file holds DoRA magnitude vectors."""
    found = tensors.of_kind(TensorKind.MAGNITUDE)
    if found:
        flag = "true" if tensors.config.value.get("use_dora") is True else "not set"
        yield Observation(f"{len(found)} magnitude vectors, `use_dora` {flag}", "none", tensor=found[0].name)


@rule(
    "MR322",
    Tensors,
    Effect.NOT_FUSABLE,
    file=WEIGHTS_FILE,
    why="trained biases belong to the adapter and have no place in a bundle",
    remedy='train with `bias="none"` and `lora_bias=False`',
)
def file_holds_biases(tensors: Tensors) -> Observations:
    """The file holds biases."""
    biases = tensors.of_kind(TensorKind.FACTOR_BIAS) + tensors.of_kind(TensorKind.FULL_BIAS)
    if biases:
        yield Observation(f"{len(biases)} biases", "none", tensor=biases[0].name)


@rule(
    "MR323",
    Tensors,
    Effect.NOT_FUSABLE,
    file=WEIGHTS_FILE,
    why="full weights replace those of the base: a head of a classifier, `modules_to_save`, or a resized "
    "vocabulary; members cannot each replace the same module",
    remedy="use the adapter by itself with PEFT, or train without them",
)
def file_holds_full_weights(tensors: Tensors) -> Observations:
    """The file holds full weights beside the factors."""
    found = [*tensors.of_kind(TensorKind.FULL_WEIGHT), *tensors.of_kind(TensorKind.SAVED)]
    if not found or not (tensors.pairs or tensors.of_kind(TensorKind.EMBEDDING_FACTOR)):
        return
    vocabulary = [entry for entry in found if _module_of(entry.name) in OUTPUT_LAYERS | EMBEDDING_LAYERS]
    if vocabulary:
        kind = ": embedding or output layer, saved in full (a resized or tied vocabulary)"
    else:
        kind = ": the head of a classifier" if tensors.config.has_head else ""
    first = (vocabulary or found)[0]
    yield Observation(f"{len(found)} full weights{kind}", "LoRA factors only", tensor=first.name)


@rule(
    "MR324",
    Tensors,
    Effect.NOT_FUSABLE,
    file=WEIGHTS_FILE,
    why="embedding and output layer are shared by all members and often tied to each other",
    remedy="train without them, or use the adapter by itself with PEFT",
)
def vocabulary_layers_are_adapted(tensors: Tensors) -> Observations:
    """The file adapts the embedding or the output layer."""
    for entry in tensors.of_kind(TensorKind.EMBEDDING_FACTOR):
        yield Observation("a LoRA factor of an embedding", "factors of linear layers", tensor=entry.name)
    for pair in tensors.pairs:
        if pair.path.rpartition(".")[2] in OUTPUT_LAYERS | EMBEDDING_LAYERS:
            yield Observation(
                f"LoRA on {quote_name(pair.path)}", "linear layers in between", tensor=pair.any_name
            )


@rule(
    "MR325",
    Tensors,
    Effect.NOT_FUSABLE,
    file=WEIGHTS_FILE,
    why="trained token rows replace rows of the embedding",
    remedy="use the adapter by itself with PEFT, or train without `trainable_token_indices`",
)
def file_holds_token_rows(tensors: Tensors) -> Observations:
    """The file holds trained token rows."""
    found = tensors.of_kind(TensorKind.TOKENS)
    if found:
        yield Observation(f"{len(found)} tensors of token rows", "none", tensor=found[0].name)


@rule(
    "MR326",
    Tensors,
    Effect.NOT_FUSABLE,
    file=WEIGHTS_FILE,
    why="transformers 5 keeps the experts of a mixture in one parameter, so the module may be gone",
    remedy="use the adapter by itself with PEFT; bundle format 1 has no expert modules",
)
def experts_are_adapted(tensors: Tensors) -> Observations:
    """The file adapts the experts of a mixture model."""
    paths = [pair for pair in tensors.pairs if _EXPERT.search(pair.path)]
    if paths:
        found = f"{len(paths)} expert modules, such as {quote_name(paths[0].path)}"
        yield Observation(found, "none", tensor=paths[0].any_name)


@rule(
    "MR327",
    Tensors,
    Effect.NOT_FUSABLE,
    file=WEIGHTS_FILE,
    why="a variant of LoRA keeps more than A and B, and computes something else than s B A x",
    remedy="use the adapter by itself with PEFT, or train a plain LoRA",
)
def file_holds_variant(tensors: Tensors) -> Observations:
    """The file holds tensors of a LoRA variant."""
    found = tensors.of_kind(TensorKind.VARIANT)
    if found:
        yield Observation(f"{len(found)} tensors of a variant", "A and B only", tensor=found[0].name)
    inside = [pair for pair in tensors.pairs if pair.is_inside]
    if inside:
        yield Observation(
            f"{len(inside)} modules inside others that are adapted as a whole, such as "
            f"{quote_name(inside[0].path)}",
            "modules that are adapted one by one",
            tensor=inside[0].any_name,
            reason="inside",
        )


@rule(
    "MR328",
    Tensors,
    Effect.NOT_FUSABLE,
    file=WEIGHTS_FILE,
    why="PEFT ignores it and a bundle cannot hold it; what it was meant for is unknown",
    remedy="remove the tensor if it is not part of the adapter",
)
def tensor_is_unknown(tensors: Tensors) -> Observations:
    """A tensor is neither a factor nor anything known."""
    for entry in tensors.of_kind(TensorKind.UNKNOWN):
        yield Observation(
            f"{entry.dtype} {list(entry.shape)}", "an A, a B, or a known extra", tensor=entry.name
        )


@rule(
    "MR329",
    Tensors,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="PEFT finds no place for such a name and leaves the base as it is, or stops with a KeyError",
    remedy="save the adapter with PEFT's `save_pretrained`, which writes neither the adapter's name nor a "
    "wrapper's into tensor names",
)
def name_is_not_pefts(tensors: Tensors) -> Observations:
    """A name looks like LoRA's, and PEFT neither writes nor reads it."""
    for entry in tensors.of_kind(TensorKind.MISNAMED):
        yield Observation("such a name", "`base_model.model.<module>.lora_A.weight`", tensor=entry.name)
    names = {entry.name for entry in tensors.header.tensors if _SAVED_PART in entry.name}
    if names:
        # With `bias="all"` PEFT writes the wrapper's biases besides the module's own.
        names -= {name for name in names if name.replace(_SAVED_PART, ".") in tensors.header}
    for name in sorted(names):
        yield Observation("a wrapper's name", "the module's own", tensor=name, reason="wrapper")


@rule(
    "MR330",
    Tensors,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="PEFT takes what the file lacks at its first value, drops what the config does not declare, or stops "
    "with a KeyError: none of it is the adapter that was trained",
    remedy="restore the config and the weights that the training wrote together",
)
def variant_is_incomplete(tensors: Tensors) -> Observations:
    """The config and the tensors contradict each other about a variant of LoRA."""
    value = tensors.config.value
    checks = (
        ("use_dora", value.get("use_dora") is True, TensorKind.MAGNITUDE, "lora_magnitude_vector"),
        ("kasa_config", value.get("kasa_config") is not None, TensorKind.VARIANT, "lora_diag"),
    )
    for name, is_declared, kind, part in checks:
        entries = [entry for entry in tensors.of_kind(kind) if f".{part}" in entry.name]
        if entries and not is_declared:
            yield Observation(
                f"`{part}` in {len(entries)} modules", "none", tensor=entries[0].name, reason=name
            )
        if is_declared:
            there = {strip_marks(entry.name)[0].partition(f".{part}")[0] for entry in entries}
            lacking = [pair for pair in tensors.modules if pair.path not in there]
            if lacking:
                found = f"no `{part}` in {len(lacking)} of {len(tensors.modules)} modules"
                yield Observation(found, "one in each", tensor=lacking[0].any_name, field=name, reason=name)
    rows = value.get("trainable_token_indices")
    if rows and not tensors.of_kind(TensorKind.TOKENS):
        yield Observation("no trained token rows", quote(rows), field="trainable_token_indices")


def _begins_unknown(path: str) -> bool:
    """Return whether a path begins with half of PEFT's prefix."""
    return path == "base_model" or path.startswith("base_model.")


def _module_of(name: str) -> str:
    """Return the last part of the path of the module that a weight or bias belongs to."""
    return name.rpartition(".")[0].rpartition(".")[2]
