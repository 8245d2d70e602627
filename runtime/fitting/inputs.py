"""The distinct inputs of a bundle's modules: q, k and v read one tensor, and so do gate and up.

Which modules share an input is observed and not guessed from names: in one pass of the base the very same
tensor reaches each of them. They then share one statistic and one gate.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...schemas.errors import BundleRefused, UsageError
from ..layer import features_of

OnInput = Callable[[str, Tensor], None]


@dataclass(frozen=True, slots=True)
class ModuleInput:
    """One tensor of a pass, and the modules that read it in the order of their calls."""

    modules: tuple[str, ...]
    features: int

    @property
    def source(self) -> str:
        """The module that is called first with it, and whose gate serves the others."""
        return self.modules[0]


def find_inputs(base: PreTrainedModel, paths: Sequence[str]) -> tuple[ModuleInput, ...]:
    """Find the distinct inputs of these modules, in the order in which a pass reaches them.

    Raises:
        BundleRefused: a module is not called in a pass, or more than once.
    """
    finder = _Finder()
    with watched(base, paths, finder.note):
        run(base, paths, torch.zeros(1, 2, dtype=torch.int64, device=base.device))
    called = [path for group in finder.groups for path in group]
    for path in paths:
        if (count := called.count(path)) != 1:
            raise BundleRefused(
                f"the base calls `{path}` {count} times in a pass, expected once: "
                "no gate can be fitted for it"
            )
    return tuple(
        ModuleInput(tuple(group), size) for group, size in zip(finder.groups, finder.features, strict=True)
    )


def check_plain(base: nn.Module) -> None:
    """Check that the base carries no adapter.

    Raises:
        UsageError: it carries one.
    """
    for path, module in base.named_modules():
        if isinstance(module, BaseTunerLayer):
            raise UsageError(
                f"`{path}` carries an adapter, expected the plain base",
                hint="gates are fitted on what the base alone computes: load it anew",
            )


def check_shapes(base: nn.Module, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Check that the base has every module of a bundle with these ``(in, out)`` features.

    Raises:
        BundleRefused: it lacks a module, or one has other features.
    """
    modules = dict(base.named_modules())
    for path, (in_features, out_features) in shapes.items():
        if path not in modules:
            raise BundleRefused(
                f"the base `{type(base).__name__}` has no module `{path}`",
                hint="name the base that the bundle was fused for with `--base`",
            )
        found = features_of(modules[path])
        if None not in found and found != (in_features, out_features):
            raise BundleRefused(
                f"`{path}` of the base is {found[0]} -> {found[1]}, "
                f"of the bundle {in_features} -> {out_features}",
                hint="name the base that the bundle was fused for with `--base`",
            )


@contextmanager
def watched(base: nn.Module, paths: Iterable[str], on_input: OnInput) -> Iterator[None]:
    """Call ``on_input`` within the block with each of these modules' path and input."""
    modules = dict(base.named_modules())
    handles = [_watch(modules[path], path, on_input) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch(module: nn.Module, path: str, on_input: OnInput) -> Any:
    def call(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        on_input(path, positional[0] if positional else next(iter(named.values())))

    return module.register_forward_pre_hook(call, with_kwargs=True)


def run(base: PreTrainedModel, paths: Iterable[str], ids: Tensor, mask: Tensor | None = None) -> None:
    """Run the base over ids int64 ``[B, T]``, without gradients; without the head if no module needs it."""
    # The head of a large vocabulary costs more memory than all the rest.
    inside = all(path.startswith(f"{base.base_model_prefix}.") for path in paths)
    model = base.base_model if inside else base
    was_training = model.training
    model.eval()
    try:
        # Not inference mode: its tensors have no version, which shows that one was changed.
        with torch.no_grad():
            model(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        model.train(was_training)


class _Finder:
    """A grouping of modules by the tensor that they are called with.

    A tensor is known by its identity while it lives, and by its version, which counts changes in place.
    """

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.features: list[int] = []
        self._seen: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}

    def note(self, path: str, x: Tensor) -> None:
        """Add a module to those that read the same tensor."""
        seen = self._seen.get(id(x))
        if seen is not None and seen[0]() is x and seen[1] == x._version:
            self.groups[seen[2]].append(path)
            return
        self._seen[id(x)] = (weakref.ref(x), x._version, len(self.groups))
        self.groups.append([path])
        self.features.append(x.shape[-1])
