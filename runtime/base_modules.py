"""The linear modules of a base model, read without its weights, and the present names of renamed ones.

transformers 5 gave the modules of many architectures new paths and converts checkpoints as it loads them,
adapters only if their peft type is LORA. A bundle therefore stores present names: when the base is at
hand, the paths of its members are resolved here, on a model without memory, before they are fused.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.pytorch_utils import Conv1D

from ..schemas.errors import UsageError
from .base_model import bounded_modules, check_base_config, translated_failures
from .layer import features_of

# The task of embedding models, which have no head: their module paths lack the prefix of the whole model.
_FEATURES = "FEATURE_EXTRACTION"


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """A linear module: ``linear``, ``conv1d``, or the class of another layer that states its features."""

    kind: str
    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """The model that adapters were trained on, as far as their configs name it: a class or a task."""

    class_name: str | None = None
    task_type: str | None = None


def read_base(source: PretrainedConfig | Path, trained_on: TrainedOn | None = None) -> PreTrainedModel:
    """Build the model that a config, or the folder of a base, describes: on the meta device, without weights.

    It is of the class that adapters were ``trained_on``, by default the one that the config names. Only ``config.json`` is read and no code of the folder is run.

    Raises:
        SourceUnreadable: the folder has no config that transformers can read.
        UsageError: transformers does not have the architecture.
    """
    if isinstance(source, Path):
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


def vocabulary_of(base: PreTrainedModel) -> int | None:
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
    """Return the present name of each module path; a path that the base has under no name is left out."""
    weights = base.state_dict()
    # A converter joins or splits tensors: two modules then become one, which no adapter fits.
    renamings = [entry for entry in get_model_conversion_mapping(base) if isinstance(entry, WeightRenaming)]
    modules = {path for path, _ in base.named_modules()}
    resolved = {}
    for path in paths:
        renamed, _ = rename_source_key(f"{path}.weight", renamings, [], base.base_model_prefix, weights)
        present = path if path in modules else renamed.removesuffix(".weight")
        if present in modules:
            resolved[path] = present
    return resolved


def _read_config(folder: Path) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    return config


def _build(config: PretrainedConfig, trained_on: TrainedOn) -> PreTrainedModel:
    named = getattr(transformers, trained_on.class_name or "", None)
    # The class of a part of the model, such as its text, has a config of its own.
    if isinstance(named, type) and issubclass(named, PreTrainedModel) and named.config_class is type(config):
        return named(config)
    if trained_on.task_type == _FEATURES:
        backbone: PreTrainedModel = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
        return backbone
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


def _kind_of(module: torch.nn.Module) -> str:
    if isinstance(module, Conv1D):
        return "conv1d"
    return "linear" if isinstance(module, torch.nn.Linear) else type(module).__name__
