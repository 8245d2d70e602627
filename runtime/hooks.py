"""The hooks of a base model around each of its forward passes, for the bundles on it.

The routed layers alone cannot know where a request begins, nor see all of it before they answer. So the base
model itself has hooks, which run whatever calls it: PEFT, transformers' ``generate`` or a training loop.
Before a pass each router gets the call; if a router needs evidence, the plain base first reads the same
tokens, which costs one more pass over a prompt, and for scope `segment` over every token of the answer. After
the pass the cache gets the decisions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .cache_memory import CacheMemory, ObservedBase
from .calls import ForwardCall
from .router import BundleRouter
from .scopes.decision import RequestDecision
from .scopes.passes import Evidence, RoutingPass

_ATTRIBUTE = "_meteora_hooks"


class ModelHooks:
    """The hooks of one base model, and the routers of the bundles on it by PEFT's adapter name."""

    def __init__(self) -> None:
        self.routers: dict[str, BundleRouter] = {}
        self._handles: list[RemovableHandle] = []
        self._decided: dict[str, RequestDecision] = {}
        self._observed: ObservedBase | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Return the hooks of a model, which gets them now if it has none."""
        found: Self | None = model.__dict__.get(_ATTRIBUTE)
        if found is None:
            found = cls()
            setattr(model, _ATTRIBUTE, found)
            found._handles = [
                model.register_forward_pre_hook(found.before, with_kwargs=True),
                model.register_forward_hook(found.after, with_kwargs=True),
            ]
        return found

    @staticmethod
    def remove(model: nn.Module) -> None:
        """Remove the hooks from a model."""
        found: ModelHooks | None = model.__dict__.pop(_ATTRIBUTE, None)
        for handle in found._handles if found else ():
            handle.remove()

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Set up the pass of every active bundle."""
        self.routers = {name: router for name, router in self.routers.items() if router.is_loaded}
        active = [router for router in self.routers.values() if router.is_active]
        call = ForwardCall(module, args, kwargs)
        self._observed = None
        asking = [router for router in active if router.needs_evidence(call)]
        evidence = self._observe(call, asking) if asking else {}
        decided = {
            router.adapter_name: router.begin(call, evidence.get(router.adapter_name)) for router in active
        }
        self._decided = {name: decision for name, decision in decided.items() if decision is not None}

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Keep the decisions on the cache that the pass leaves."""
        decided, self._decided = self._decided, {}
        observed, self._observed = self._observed, None
        if decided:
            cache = ForwardCall(module, args, kwargs).cache
            cache = _cache_in(output) if cache is None else cache
            if cache is not None:
                CacheMemory.attach(cache, decided, observed)

    def _observe(self, call: ForwardCall, asking: Sequence[BundleRouter]) -> dict[str, Evidence]:
        """Gather the evidence of each asking router's gates for the call's tokens on the plain base."""
        passes = {name: router.observe(call) for name, router in self.routers.items()}
        # `module.forward` bypasses these hooks. No bundle adds anything meanwhile, whether or not it asked.
        with torch.no_grad(), _evaluated(call.module), ExitStack() as stack:
            for name, router in self.routers.items():
                stack.enter_context(_observed(router, passes[name]))
            self._observed = _look(call, goes_on=any(router.rule.observes_answers for router in asking))
        return {router.adapter_name: passes[router.adapter_name].evidence for router in asking}


def _look(call: ForwardCall, *, goes_on: bool) -> ObservedBase | None:
    """Run the base over the call's tokens; return its cache if it is to read the answer too."""
    own = call.stretch.own
    before = None if call.is_new else CacheMemory.of(call.cache)
    past = None if before is None else before.observed
    if past is not None:
        past.follow(call.past_tokens)
        own = torch.cat([past.own, own], dim=1)
    cache = None if past is None else past.cache
    output = call.module.forward(**call.observed_arguments(own, past=cache, use_cache=goes_on))
    return ObservedBase(_cache_in(output), own) if goes_on else None


@contextmanager
def _observed(router: BundleRouter, observed: RoutingPass) -> Iterator[None]:
    router.observed = observed
    try:
        yield
    finally:
        router.observed = None


@contextmanager
def _evaluated(module: nn.Module) -> Iterator[None]:
    """Switch off dropout within the block: it would make the same request look different each time."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _cache_in(output: Any) -> Any:
    """Return the cache in a model's output, or None."""
    if isinstance(output, tuple):
        return next((part for part in output if hasattr(part, "get_seq_length")), None)
    return getattr(output, "past_key_values", None)
