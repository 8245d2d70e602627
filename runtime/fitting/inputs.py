"""The distinct inputs of a bundle's modules: q, k and v read one tensor, and so do gate and up.

Which modules share an input is observed and not guessed from names: in one pass of the base the very same
tensor reaches each of them. They then share one statistic and one gate.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...schemas.errors import BundleRefused, UsageError
from ...schemas.trace import ModulePlace
from ..layer import features_of

OnInput = Callable[[str, Tensor], None]
# Enough to tell a module that sees every token from an expert of a mixture that sees some.
_PROBE_TOKENS = 3


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
    finder = _find(base, paths)
    for path in paths:
        if (count := finder.calls[path]) != 1:
            raise BundleRefused(
                f"the base calls `{path}` {count} times in a pass, expected once: "
                "no gate can be fitted for it"
            )
    return tuple(
        ModuleInput(tuple(group), size) for group, size in zip(finder.groups, finder.features, strict=True)
    )


def find_layer_inputs(base: PreTrainedModel, own: Collection[str]) -> tuple[ModuleInput, ...]:
    """Find the inputs of all linear modules in the base's layers, in the order in which a pass reaches them.

    Modules that a pass calls more than once, or not for every token, are left out. Where there are several
    stacks of layers, those of the one with most inputs are found.

    Args:
        base: the plain base.
        own: the modules of a bundle. Where one of them reads an input, it is the input's first.
    """
    linear = [path for path, module in base.named_modules() if None not in features_of(module)]
    paths = [path for path in {*linear, *own} if ModulePlace.of(path).layer]
    finder = _find(base, paths)
    groups = [
        [path for path in group if finder.calls[path] == 1 and finder.sees_all[path]]
        for group in finder.groups
    ]
    # Sorting keeps the order of the calls within each kind.
    found = [
        ModuleInput(tuple(sorted(group, key=lambda path: path not in own)), size)
        for group, size in zip(groups, finder.features, strict=True)
        if group
    ]
    stacks = Counter(_stack_of(each) for each in found)
    most = max(stacks, key=lambda stack: stacks[stack], default="")
    return tuple(each for each in found if _stack_of(each) == most)


def _stack_of(each: ModuleInput) -> str:
    return ModulePlace.of(each.source).order[0]


def _find(base: PreTrainedModel, paths: Iterable[str]) -> _Finder:
    finder = _Finder(_PROBE_TOKENS)
    watching = tuple(paths)
    with watched(base, watching, finder.note):
        run(base, watching, torch.zeros(1, _PROBE_TOKENS, dtype=torch.int64, device=base.device))
    return finder


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


def check_shapes(
    base: nn.Module, shapes: Mapping[str, tuple[int, int]], observed: Mapping[str, int] | None = None
) -> None:
    """Check that the base has every module of a bundle with these ``(in, out)`` features.

    Args:
        base: the base.
        shapes: of the modules that members touch.
        observed: the input features of those that request gates alone read.

    Raises:
        BundleRefused: it lacks a module, or one has other features.
    """
    modules = dict(base.named_modules())

    def features_at(path: str) -> tuple[int | None, int | None]:
        if path not in modules:
            raise _other_base(f"the base `{type(base).__name__}` has no module `{path}`")
        return features_of(modules[path])

    for path, shape in shapes.items():
        found = features_at(path)
        if None not in found and found != shape:
            raise _other_base(
                f"`{path}` of the base is {found[0]} -> {found[1]}, of the bundle {shape[0]} -> {shape[1]}"
            )
    for path, features in (observed or {}).items():
        reads, _ = features_at(path)
        if reads not in (None, features):
            raise _other_base(
                f"`{path}` of the base reads {reads} features, a request gate of the bundle {features}"
            )


def _other_base(message: str) -> BundleRefused:
    return BundleRefused(message, hint="name the base that the bundle was fused for with `--base`")


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

    def __init__(self, tokens: int) -> None:
        self.groups: list[list[str]] = []
        self.features: list[int] = []
        self.calls: Counter[str] = Counter()
        self.sees_all: dict[str, bool] = {}
        self._tokens = tokens
        self._seen: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}

    def note(self, path: str, x: Tensor) -> None:
        """Add a module to those that read the same tensor."""
        self.calls[path] += 1
        self.sees_all[path] = x.shape[:-1].numel() == self._tokens
        seen = self._seen.get(id(x))
        if seen is not None and seen[0]() is x and seen[1] == x._version:
            self.groups[seen[2]].append(path)
            return
        self._seen[id(x)] = (weakref.ref(x), x._version, len(self.groups))
        self.groups.append([path])
        self.features.append(x.shape[-1])
