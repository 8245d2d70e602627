"""A base model that runs only its first layers, for a pass in which no later layer is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, cast

from torch import nn

from ..schemas.trace import ModulePlace
from .shallow_copy import shallow_copy


def shortened(model: nn.Module, paths: Iterable[str]) -> nn.Module:
    """Return a model that runs no layer after the last one that has any of these modules.

    It shares its layers, and every tensor, with the original, which does not change: other threads may be
    running it. Where the modules are not all in one list of layers, it is the original.
    """
    needed = first_layers(model, paths)
    if needed is None:
        return model
    stack, kept = needed
    return _with(
        model, stack.split("."), _FirstLayers(cast("nn.ModuleList", model.get_submodule(stack)), kept)
    )


def first_layers(model: nn.Module, paths: Iterable[str]) -> tuple[str, int] | None:
    """Return the path of the list of layers that has all of these modules, and how many of it are needed.

    None if they are not all in one list, or all of it is needed.
    """
    orders = {ModulePlace.of(path).order for path in paths}
    stacks = {stack for stack, _ in orders}
    if len(stacks) != 1 or "" in stacks:
        return None
    (stack,) = stacks
    layers, kept = model.get_submodule(stack), max(number for _, number in orders) + 1
    is_longer = isinstance(layers, nn.ModuleList) and kept < len(layers)
    return (stack, kept) if is_longer else None


def _with(module: nn.Module, path: list[str], layers: nn.Module) -> nn.Module:
    """Return a copy of a module with other layers at a path."""
    if not path:
        return layers
    name, *rest = path
    part = _with(module.get_submodule(name), rest, layers)
    return shallow_copy(module, {**module._modules, name: part})


class _FirstLayers(nn.ModuleList):
    """A list of layers whose iteration and slices have only the first ones.

    Models iterate over their layers, or over a slice of them. One that indexes each layer runs them all,
    which gives the same evidence and takes longer.
    """

    def __init__(self, layers: nn.ModuleList, kept: int) -> None:
        super().__init__()
        # Any part in training has the whole model copied, and a new module is one.
        self.training = layers.training
        self._modules.update(islice(layers._modules.items(), kept))
        self._later = (*layers,)[kept:]

    def __len__(self) -> int:
        return len(self._modules) + len(self._later)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter([*self._modules.values()])

    def __getitem__(self, index: int | slice) -> Any:
        return nn.ModuleList([*self][index]) if isinstance(index, slice) else [*self, *self._later][index]
