"""The hooks of a base model around each of its forward passes, for the bundles on it.

The routed layers alone cannot know where a request begins, nor see all of it before they answer. So the base
model itself has hooks, which run whatever calls it: PEFT, transformers' ``generate`` or a training loop.
Before a pass each router gets the call; if a router needs evidence, the plain base first reads the same
tokens, as far as the gates that decide: a prompt's, and for scope `segment` every token of the answer. After
the pass, whether or not it succeeded, its state is gone from the thread, and the cache has the decisions.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from .cache_memory import CacheMemory, ObservedBase
from .calls import ForwardCall, cache_in
from .current_pass import ModelPass, begin_pass, carry_into_recomputation, end_pass, stop_carrying
from .observation import observe
from .router import BundleRouter, StartedPass
from .scopes.decision import RequestDecision
from .training_checks import check_training

_ATTRIBUTE = "_meteora_hooks"


class RequestPass(ModelPass):
    """A forward pass that was called from outside, with what its cache is to remember."""

    def __init__(self, module: nn.Module, routers: list[BundleRouter]) -> None:
        super().__init__(module, routers)
        self.decided: dict[str, RequestDecision] = {}
        self.observed: ObservedBase | None = None

    @staticmethod
    def started(call: ForwardCall) -> list[StartedPass]:
        """Return the started pass of every active bundle on the call's model."""
        present = ModelHooks.of(call.module).present_routers
        return [router.start(call) for router in present if router.is_active]

    def settle(self, call: ForwardCall) -> None:
        """Settle who serves the call's tokens."""
        started = self.started(call)
        asking = [each for each in started if each.needs_evidence]
        for each in asking:
            call.check_model(each.rule.scope)
            call.check_rows(each.rule.scope)
        if torch.is_grad_enabled() and call.module.training:
            check_training(call.module, started)
        evidence, self.observed = observe(call, self.routers, asking) if asking else ({}, None)
        for each in started:
            self.parts[each.router], decision = each.settle(evidence.get(each.router))
            if decision is not None:
                self.decided[each.router.adapter_name] = decision

    def keep(self, call: ForwardCall, output: Any) -> None:
        """Keep the decisions on the cache that the pass leaves, and add the pass to the records."""
        cache = call.cache if call.cache is not None else cache_in(output)
        if self.decided and cache is not None:
            observed = self.observed
            if observed is None and not call.is_new:
                # A piece of a prompt that was read whole: the base is ahead.
                observed = CacheMemory.on(cache).observed
            CacheMemory.attach(cache, self.decided, observed)
        for part in self.parts.values():
            if part.record is not None:
                part.record.commit(cache)


class ModelHooks:
    """The hooks of one base model, and the routers of the bundles on it by PEFT's adapter name."""

    def __init__(self) -> None:
        self.routers: dict[str, BundleRouter] = {}
        self._handles: list[RemovableHandle] = []

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Return the hooks of a model, which gets them now if it has none."""
        found: Self | None = model.__dict__.get(_ATTRIBUTE)
        if found is None:
            found = cls()
            setattr(model, _ATTRIBUTE, found)
            found._handles = [
                model.register_forward_pre_hook(found.before, with_kwargs=True),
                model.register_forward_hook(found.after, with_kwargs=True, always_call=True),
            ]
            head: Any = None
            if isinstance(model, PreTrainedModel):
                head = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers'
            if head is not None:
                found._handles.append(head.register_forward_pre_hook(_with_own_strides))
        return found

    @staticmethod
    def remove(model: nn.Module) -> None:
        """Remove the hooks from a model."""
        found: ModelHooks | None = model.__dict__.pop(_ATTRIBUTE, None)
        for handle in found._handles if found else ():
            handle.remove()
        stop_carrying(model)

    @property
    def present_routers(self) -> list[BundleRouter]:
        """The routers of the bundles that are still on the model."""
        return [router for router in self.routers.values() if router.is_loaded]

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a pass, with the part of every active bundle."""
        begun = RequestPass(module, self.present_routers)
        begin_pass(begun)
        if torch.is_grad_enabled():
            carry_into_recomputation(module)
        begun.settle(ForwardCall(module, args, kwargs))

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """End the pass; ``output`` is None if it failed."""
        ended = end_pass(module)
        if isinstance(ended, RequestPass) and output is not None:
            ended.keep(ForwardCall(module, args, kwargs), output)


def _with_own_strides(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a head's arguments with the strides of a tensor of their shape.

    ``generate`` hands the head the last token of each prompt, a slice. On some processors torch copies a head
    in half precision whole for such strides: 90 ms in place of 4 for one of 49152 x 576, on a processor with
    AMX. Without AMX a slice of one sequence costs nothing extra, and one of four a sixth to two thirds more.
    """
    return tuple(arg.reshape(-1).view(arg.shape) if isinstance(arg, Tensor) else arg for arg in args)
