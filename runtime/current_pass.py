"""The forward passes that run on this thread, innermost last, and each bundle's part in them.

A routed layer asks here who serves its tokens. Nothing about a pass is kept on the model, so passes in
several threads cannot meet. Activation checkpointing runs a layer again during the backward pass, maybe in
one of autograd's threads; the pass that the layer belonged to is then carried there and resumed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..kernels.routing import FixedRouting, Gate, Routing
from .scopes.passes import Choice, RoutingPass
from .scopes.routing_rule import RoutingRule

if TYPE_CHECKING:
    from .router import BundleRouter
    from .routing_record import PassRecord


class BundlePass:
    """One bundle's part in one forward pass: who serves its layers' tokens, by which rule.

    Both are settled when the pass begins, so a block that forces a member may end before the backward pass.
    """

    __slots__ = ("record", "routing", "rule")

    def __init__(self, routing: RoutingPass, rule: RoutingRule, record: PassRecord | None = None) -> None:
        self.routing = routing
        self.rule = rule
        self.record = record

    def choose(self, path: str, x: Tensor, gate: Gate | None) -> Choice | None:
        """Return what serves a module's tokens x [..., in]: its gate, a routing, or None for no member."""
        choice = self.routing.choose(path, x, gate)
        if self.record is not None and choice is not None and not isinstance(choice, Gate):
            self.record.add(path, choice, x)
        return choice

    def observe(self, path: str, x: Tensor) -> None:
        """Pass on the input x [..., in] of a module that no member touches."""
        self.routing.observe(path, x)

    def report(self, path: str, routing: Routing | FixedRouting, x: Tensor) -> None:
        """Pass on the decision of a module's gate for its tokens x [..., in], and record it."""
        self.routing.report(path, routing, x)
        if self.record is not None:
            self.record.add(path, routing, x)


class ModelPass:
    """One forward pass of a base model.

    Attributes:
        module: the base model.
        routers: every bundle on it.
        parts: the part of each bundle that is active.
    """

    def __init__(self, module: nn.Module, routers: Iterable[BundleRouter]) -> None:
        self.module = module
        self.routers = tuple(routers)
        self.parts: dict[BundleRouter, BundlePass] = {}


class _Thread(threading.local):
    def __init__(self) -> None:
        self.running: list[ModelPass] = []


_thread = _Thread()


def begin_pass(begun: ModelPass) -> None:
    """Make a pass the innermost one of this thread."""
    running = _thread.running
    # A model does not call itself: an earlier pass of it was cut short by an interrupt, which runs no hook.
    for place, earlier in enumerate(running):
        if earlier.module is begun.module:
            del running[place:]
            break
    running.append(begun)


def end_pass(module: nn.Module) -> ModelPass | None:
    """End this thread's innermost pass if it is one of ``module``, and return it."""
    running = _thread.running
    return running.pop() if running and running[-1].module is module else None


@contextmanager
def resumed(passes: Iterable[ModelPass]) -> Iterator[None]:
    """Let these passes run on this thread within the block, the last one innermost."""
    running = _thread.running
    before = len(running)
    running.extend(passes)
    try:
        yield
    finally:
        del running[before:]


def pass_of(routers: Iterable[BundleRouter]) -> ModelPass | None:
    """Return this thread's innermost pass of a model that carries one of these bundles."""
    for running in reversed(_thread.running):
        for router in routers:
            if router in running.routers:
                return running
    return None


def is_backward() -> bool:
    """Return whether autograd is running a backward pass on this thread."""
    # torch's own checkpointing asks in the same way; there is no public name for it.
    return bool(torch._C._current_graph_task_id() != -1)


class CarryingCheckpoint:
    """A checkpointing function that resumes the present pass when it runs its function again."""

    def __init__(self, checkpoint: Callable[..., Any]) -> None:
        self._checkpoint = checkpoint

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a function, and keep what is needed to run it again."""
        if torch.compiler.is_compiling():
            return self._checkpoint(function, *args, **kwargs)
        return self._checkpoint(_InPasses(tuple(_thread.running), function), *args, **kwargs)


class _InPasses:
    """A function that runs within certain passes, in whatever thread it is called."""

    def __init__(self, passes: tuple[ModelPass, ...], function: Callable[..., Any]) -> None:
        self._passes = passes
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with resumed(self._passes):
            return self._function(*args, **kwargs)


# transformers' layers, and torch's wrapper that FSDP puts around a layer, keep their function here.
_CHECKPOINTS = ("_gradient_checkpointing_func", "checkpoint_fn")


def carry_into_recomputation(model: nn.Module) -> None:
    """Let every layer of a model that checkpoints its activations carry its pass along."""
    for module in model.modules():
        for name in _CHECKPOINTS:
            checkpoint = module.__dict__.get(name)
            if checkpoint is not None and not isinstance(checkpoint, CarryingCheckpoint):
                setattr(module, name, CarryingCheckpoint(checkpoint))


def stop_carrying(model: nn.Module) -> None:
    """Undo ``carry_into_recomputation``."""
    for module in model.modules():
        for name in _CHECKPOINTS:
            checkpoint = module.__dict__.get(name)
            if isinstance(checkpoint, CarryingCheckpoint):
                setattr(module, name, checkpoint._checkpoint)
