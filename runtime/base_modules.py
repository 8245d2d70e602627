"""The linear modules of a base model, read without its weights, and the present names of renamed ones.

transformers 5 gave the modules of many architectures new paths and converts checkpoints as it loads them,
adapters only if their peft type is LORA. A bundle therefore stores present names: when the base is at
hand, the paths of its members are resolved here, on a model without memory, before they are fused.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.pytorch_utils import Conv1D

from ..schemas.errors import UsageError
from ..schemas.trained_on import TrainedOn
from .base_model import bounded_modules, check_base_config, check_base_folder, translated_failures
from .layer import features_of

# Of the weights of all experts of a layer: experts, rows, columns.
_STACKED_DIMENSIONS = 3


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """A linear module: ``linear``, ``conv1d``, or the class of another layer that states its features."""

    kind: str
    in_features: int
    out_features: int


def read_base(source: PretrainedConfig | Path, trained_on: TrainedOn | None = None) -> PreTrainedModel:
    """Build the model that a config, or the folder of a base, describes: on the meta device, without weights.

    It is of the class that adapters were ``trained_on``, by default the one that the config names. Only
    ``config.json``, or the metadata of a GGUF file, is read and no code of the folder is run.

    Raises:
        SourceUnreadable: the folder has no config that transformers can read.
        UsageError: transformers does not have the architecture.
    """
    if isinstance(source, Path):
        if source.is_file() or not check_base_folder(source):
            check_base_config(source)
        what = f"`{source}` is not a base model"
    else:
        what = "the base's config cannot be used"
    with translated_failures(what), bounded_modules(str(source) if isinstance(source, Path) else ""):
        config = _read_config(source) if isinstance(source, Path) else source
        with torch.device("meta"), warnings.catch_warnings():
            # torch remarks on tensors without elements, which no weights will ever fill here.
            warnings.simplefilter("ignore")
            return _build(config, trained_on or TrainedOn())


def adaptable_modules(base: PreTrainedModel) -> dict[str, bool]:
    """Return every module by path, and whether PEFT can put a LoRA layer in its place.

    A module with a matrix of its own counts, whatever its class: PEFT makes parameters of some names, and
    layers of quantised kinds are many.
    """
    return {
        path: any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
        for path, module in base.named_modules()
    }


def shared_modules(base: PreTrainedModel) -> frozenset[str]:
    """Return the embeddings that only lend their weight to others, such as T5's to encoder and decoder.

    No forward pass calls such a module, so a layer in its place has no effect.
    """
    modules = dict(base.named_modules())
    tied: dict[str, str] = getattr(base, "_tied_weights_keys", None) or {}
    lent = (source for target, source in tied.items() if _is_embedding(modules, target))
    return frozenset(source.removesuffix(".weight") for source in lent if _is_embedding(modules, source))


def _is_embedding(modules: Mapping[str, nn.Module], weight: str) -> bool:
    return isinstance(modules.get(weight.removesuffix(".weight")), nn.Embedding)


def default_targets(base: PreTrainedModel) -> tuple[str, ...] | None:
    """Return the modules that PEFT adapts in this architecture where a config names none."""
    found = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(base.config.model_type)
    return tuple(found) if isinstance(found, (list, tuple, set)) else None


def vocabulary_of(base: PreTrainedModel | PeftModel) -> int | None:
    """Return the number of rows of the base's embedding of tokens; None if it has none, or several.

    A model that reads images, sound, or two kinds of input need not state which of its modules that is.
    """
    try:
        embedding = base.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None
    rows = getattr(embedding, "num_embeddings", None)
    return rows if isinstance(rows, int) else None


def module_shapes(base: PreTrainedModel) -> dict[str, ModuleShape]:
    """Return every module that states its input and output features, by path."""
    shapes = {}
    for path, module in base.named_modules():
        in_features, out_features = features_of(module)
        if in_features is not None and out_features is not None:
            shapes[path] = ModuleShape(_kind_of(module), in_features, out_features)
    return shapes


def resolve_paths(paths: Iterable[str], base: PreTrainedModel) -> dict[str, str]:
    """Return the present name of each path of a module or a parameter, as PEFT finds it.

    A path that the base has under no name is left out. The modules of separate experts are now parts of one
    parameter, whose path they get: PEFT stacks their factors as it loads them.
    """
    conversions = get_model_conversion_mapping(base)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    modules = {path for path, _ in base.named_modules()}
    parameters = {path: parameter.dim() for path, parameter in base.named_parameters()}
    resolved = {}
    for path in paths:
        if path in modules or path in parameters:
            resolved[path] = path
            continue
        present = rename_source_key(f"{path}.weight", renamings, [])[0].removesuffix(".weight")
        stacked, _ = rename_source_key(f"{path}.weight", renamings, converters)
        if present in modules or present in parameters:
            resolved[path] = present
        elif parameters.get(stacked) == _STACKED_DIMENSIONS:
            resolved[path] = stacked
    return resolved


def _read_config(folder: Path) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, **check_base_folder(folder)
    )
    return config


def _build(config: PretrainedConfig, trained_on: TrainedOn) -> PreTrainedModel:
    named = getattr(transformers, trained_on.class_name or "", None)
    # The class of a part of the model, such as its text, has a config of its own.
    if isinstance(named, type) and issubclass(named, PreTrainedModel) and named.config_class is type(config):
        return named(config)
    if trained_on.lacks_head and type(config) in AutoModel._model_mapping:
        body: PreTrainedModel = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
        return body
    names = config.architectures
    if names:
        return _model_class(str(names[0]))(config)
    kind = AutoModelForCausalLM if type(config) in AutoModelForCausalLM._model_mapping else AutoModel
    model: PreTrainedModel = kind.from_config(config)  # type: ignore[no-untyped-call]
    return model


def _model_class(name: str) -> type[PreTrainedModel]:
    found = getattr(transformers, name, None)
    if isinstance(found, type) and issubclass(found, PreTrainedModel):
        return found
    raise UsageError(
        f"the base is a `{name}`, which transformers {transformers.__version__} does not have",
        hint="fuse without a local base folder: then the members' own module paths are kept",
    )


def _kind_of(module: nn.Module) -> str:
    if isinstance(module, Conv1D):
        return "conv1d"
    # Torch's own attention reads the weight of its output layer and never calls the layer.
    is_called = not isinstance(module, NonDynamicallyQuantizableLinear)
    return "linear" if isinstance(module, nn.Linear) and is_called else type(module).__name__
