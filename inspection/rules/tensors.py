"""Rules about the tensors of an adapter: the factors, how they pair, and the other tensors of the file."""

from __future__ import annotations

import re
from collections import Counter

from ...schemas.finding import Effect, Severity
from ...schemas.inventory import Dtype
from ...schemas.quotation import quote_name, quote_names
from ..config import LoraConfig
from ..keys import MAX_PATH_CHARACTERS, TensorKind, is_module_path, name_format
from ..methods import EMBEDDING_LAYERS, OUTPUT_LAYERS
from ..tensors import Pair, Tensors
from .rule import WEIGHTS_FILE, Observation, Observations, rule

_EXPERT = re.compile(r"(^|\.)experts?(\.|$)")
_LAYER = re.compile(r"\.(\d+)(?=\.|$)")
_FLOATS = frozenset(Dtype)
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
    kinds = set(tensors.others)
    if tensors.pairs or kinds & {TensorKind.FOREIGN, TensorKind.EMBEDDING_FACTOR, TensorKind.VARIANT}:
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
        )


@rule(
    "MR303",
    Tensors,
    Severity.NOTE,
    file=WEIGHTS_FILE,
    why="PEFT itself does not find such names: it warns and answers with the base's output, or with memory "
    "that was never written",
    remedy="nothing needs doing here; unwrap the model before `save_pretrained` for other loaders",
)
def names_carry_marks(tensors: Tensors) -> Observations:
    """Tensor names carry the marks of a wrapper, or lack PEFT's prefix."""
    marked = [pair for pair in tensors.pairs if pair.marks and not _begins_unknown(pair.path)]
    for marks, count in sorted(Counter(pair.marks for pair in marked).items()):
        first = next(pair for pair in marked if pair.marks == marks)
        yield Observation(
            f"{quote_names(list(marks))} in the names of {count} modules",
            "`base_model.model.<module>.lora_A.weight`",
            tensor=first.any_name,
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
            )


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
    for pair in tensors.unsound:
        if pair.a is None or pair.b is None or len(pair.a.shape) != 2 or len(pair.b.shape) != 2:
            continue
        if pair.a.shape[0] != pair.b.shape[1] and pair.a.elements and pair.b.elements:
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
            if len(entry.shape) > 2 and entry.elements:
                found = f"shape {list(entry.shape)}: a convolution"
                yield Observation(found, "a matrix", tensor=entry.name)


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
    why="a layer without tensors stays as it is in the base, silently",
    remedy="check that the file is complete; set `layers_to_transform` if they were left out on purpose",
)
def layers_are_missing(tensors: Tensors) -> Observations:
    """Some layers have modules that others lack."""
    if tensors.config.value.get("layers_to_transform") is not None:
        return
    layers: dict[str, set[int]] = {}
    for pair in tensors.pairs:
        if match := _LAYER.search(pair.path):
            shape = pair.path[: match.start(1)] + "*" + pair.path[match.end(1) :]
            layers.setdefault(shape, set()).add(int(match[1][:9]))
    everything = set().union(*layers.values()) if layers else set()
    for shape, present in sorted(layers.items()):
        holes = sorted(everything - present)
        if holes:
            yield Observation(
                f"{quote_name(shape)} in {len(present)} of {len(everything)} layers, not in "
                + ", ".join(str(number) for number in holes[:8]),
                "the same modules in every layer",
            )
    gaps = set(range(max(everything) + 1)) - everything if everything and max(everything) < 1 << 16 else set()
    if gaps and min(everything) == 0 and not any(everything - present for present in layers.values()):
        listed = ", ".join(str(number) for number in sorted(gaps)[:8])
        yield Observation(f"no tensors for the layers {listed}", "layers without gaps")


@rule(
    "MR321",
    Tensors,
    Effect.NOT_FUSABLE,
    file=WEIGHTS_FILE,
    why="DoRA vectors rescale the sum of base and delta; with the flag lost, PEFT drops them silently",
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
    factor_biases = tensors.of_kind(TensorKind.FACTOR_BIAS)
    saved = _saved_names(tensors)
    biases = factor_biases + tuple(
        entry for entry in tensors.of_kind(TensorKind.FULL_BIAS) if saved.isdisjoint(entry.name.split("."))
    )
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
    biases, saved = tensors.of_kind(TensorKind.FULL_BIAS), _saved_names(tensors)
    found = [*tensors.of_kind(TensorKind.FULL_WEIGHT)]
    found += [entry for entry in biases if not saved.isdisjoint(entry.name.split("."))]
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
        yield Observation(f"{len(paths)} expert modules", "none", tensor=paths[0].any_name)


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


@rule(
    "MR328",
    Tensors,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="the tensor's purpose is unknown, so leaving it out might change the result",
    remedy="remove the tensor if it is not part of the adapter",
)
def tensor_is_unknown(tensors: Tensors) -> Observations:
    """A tensor is neither a factor nor anything known."""
    for entry in tensors.of_kind(TensorKind.UNKNOWN):
        yield Observation(
            f"{entry.dtype} {list(entry.shape)}", "an A, a B, or a known extra", tensor=entry.name
        )


def _begins_unknown(path: str) -> bool:
    """Return whether a path begins with half of PEFT's prefix."""
    return path == "base_model" or path.startswith("base_model.")


def _module_of(name: str) -> str:
    """Return the last part of the path of the module that a weight or bias belongs to."""
    return name.rpartition(".")[0].rpartition(".")[2]


def _saved_names(tensors: Tensors) -> frozenset[str]:
    """Return the last parts of the module names in `modules_to_save`."""
    return frozenset(name.rpartition(".")[2] for name in tensors.config.saved_modules)
