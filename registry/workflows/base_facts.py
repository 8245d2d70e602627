"""The modules of a base, read from its config without its weights, for comparing adapters with them."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...fuser.planning import BaseModules
from ...inspection.base_facts import LINEAR_KINDS, BaseFacts, BaseModule
from ...inspection.comparison import Described, module_paths, trained_on
from ...schemas.errors import MissingDependency, SourceUnreadable, UsageError
from ...schemas.trained_on import TrainedOn
from ..dependencies import require_torch
from .base_place import find_cached

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PURPOSE = "looking at a base model"
_KEPT_MODELS = 4


def read_base_facts(folder: Path, name: str, paths: Iterable[str], trained_on: TrainedOn) -> BaseFacts:
    """Return the facts of a base, and the present names of those of ``paths`` that it has.

    The base is of the class that adapters were ``trained_on``, and called ``name`` in findings.

    Raises:
        SourceUnreadable: the folder has no config that transformers can read.
        UsageError: transformers does not have the architecture.
        MissingDependency: transformers is not installed.
    """
    require_torch(_PURPOSE)
    from ...runtime.base_modules import read_base

    return facts_of(read_base(folder, trained_on), name, paths)


class BaseReader:
    """A base that many adapters are compared with, built once for each class of model.

    Adapters may name any number of classes, so only the models of the last few are kept.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self._name = folder, name
        self._read: dict[TrainedOn, tuple[PreTrainedModel, BaseFacts]] = {}
        # A model builds its parts when it is first asked for them.
        self._lock = threading.Lock()

    def facts_for(self, adapter: Described) -> BaseFacts:
        """Return the facts of the base for the modules of one adapter.

        Raises:
            SourceUnreadable, UsageError, MissingDependency: as ``read_base_facts``.
        """
        with self._lock:
            model, facts = self._model(trained_on(adapter))
            return replace(facts, present=present_paths(model, module_paths(adapter)))

    @property
    def architectures(self) -> tuple[str, ...]:
        """The classes that the base's config names; none before it was read for an adapter."""
        return next((facts.architectures for _, facts in self._read.values()), ())

    def _model(self, kind: TrainedOn) -> tuple[PreTrainedModel, BaseFacts]:
        if kind not in self._read:
            require_torch(_PURPOSE)
            from ...runtime.base_modules import read_base

            while len(self._read) >= _KEPT_MODELS:
                del self._read[next(iter(self._read))]
            model = read_base(self.folder, kind)
            self._read[kind] = model, facts_of(model, self._name, ())
        return self._read[kind]


def facts_of(model: PreTrainedModel, name: str, paths: Iterable[str]) -> BaseFacts:
    """Return the facts of a base that is at hand, and the present names of those of ``paths`` that it has."""
    from ...runtime import base_modules

    return BaseFacts(
        name=name,
        modules={
            path: BaseModule(shape.kind, shape.in_features, shape.out_features)
            for path, shape in base_modules.module_shapes(model).items()
        },
        present=present_paths(model, paths),
        vocabulary=base_modules.vocabulary_of(model),
        ties_embedding=bool(getattr(model.config, "tie_word_embeddings", False)),
        adaptable=base_modules.adaptable_modules(model),
        shared=base_modules.shared_modules(model),
        default_targets=base_modules.default_targets(model),
        architectures=tuple(map(str, model.config.architectures or ())),
    )


def present_paths(model: PreTrainedModel, paths: Iterable[str]) -> dict[str, str]:
    """Return the present names of those of ``paths`` that a base has."""
    from ...runtime.base_modules import resolve_paths

    return resolve_paths(sorted(paths), model)


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
