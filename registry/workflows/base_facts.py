"""The modules of a base, read from its config without its weights, for comparing adapters with them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ...fuser.planning import BaseModules
from ...inspection.base_facts import LINEAR_KINDS, BaseFacts, BaseModule
from ...schemas.errors import MissingDependency, SourceUnreadable, UsageError
from ...schemas.trained_on import TrainedOn
from ..dependencies import require_torch
from .base_place import find_cached

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def read_base_facts(folder: Path, name: str, paths: Iterable[str], trained_on: TrainedOn) -> BaseFacts:
    """Return the facts of a base, and the present names of those of ``paths`` that it has.

    The base is of the class that adapters were ``trained_on``, and called ``name`` in findings.

    Raises:
        SourceUnreadable: the folder has no config that transformers can read.
        UsageError: transformers does not have the architecture.
        MissingDependency: transformers is not installed.
    """
    require_torch("looking at a base model")
    from ...runtime.base_modules import read_base

    return facts_of(read_base(folder, trained_on), name, paths)


def facts_of(model: PreTrainedModel, name: str, paths: Iterable[str]) -> BaseFacts:
    """Return the facts of a base that is at hand, and the present names of those of ``paths`` that it has."""
    from ...runtime import base_modules

    return BaseFacts(
        name=name,
        modules={
            path: BaseModule(shape.kind, shape.in_features, shape.out_features)
            for path, shape in base_modules.module_shapes(model).items()
        },
        present=base_modules.resolve_paths(sorted(paths), model),
        vocabulary=base_modules.vocabulary_of(model),
        ties_embedding=bool(getattr(model.config, "tie_word_embeddings", False)),
        adaptable=base_modules.adaptable_modules(model),
        shared=base_modules.shared_modules(model),
        default_targets=base_modules.default_targets(model),
    )


def read_cached_facts(
    name: str | None, revision: str | None, paths: Iterable[str], trained_on: TrainedOn
) -> tuple[Path | None, BaseFacts | None]:
    """Return the folder and the facts of a base in the local Hub cache.

    Both are None where it is not there or cannot be read: the cache was not asked for.
    """
    folder = find_cached(name, revision) if name else None
    if name is None or folder is None:
        return None, None
    try:
        return folder, read_base_facts(folder, name, paths, trained_on)
    except (UsageError, SourceUnreadable, MissingDependency):
        return None, None


def linear_modules(facts: BaseFacts) -> BaseModules:
    """Return the modules of a base that a bundle can have layers for."""
    shapes = {
        path: (module.in_features, module.out_features)
        for path, module in facts.modules.items()
        if module.kind in LINEAR_KINDS
    }
    return BaseModules(shapes=shapes, renamed=facts.present)
