"""The plain base's own pass over a call's tokens, from which decisions are made.

It runs the base with no member and without dropout, on layers whose modes no other thread sees: those of a
model in training are copied, with the same tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .cache_memory import CacheMemory, ObservedBase
from .calls import ForwardCall
from .current_pass import BundlePass, ModelPass, resumed
from .router import BundleRouter, StartedPass
from .scopes.passes import Evidence
from .shallow_copy import shallow_copy
from .shortened import shortened


def observe(
    call: ForwardCall, routers: Sequence[BundleRouter], asking: Sequence[StartedPass]
) -> tuple[dict[BundleRouter, Evidence], ObservedBase | None]:
    """Return the evidence of each asking bundle's gates, and the base's cache if it is to read answers too.

    The base reads all of a prompt of which the call has a piece. If that is all it is to read, no layer runs
    behind the last one whose evidence counts.

    Args:
        call: the tokens.
        routers: every bundle on the model; none adds anything meanwhile, whether or not it asks.
        asking: the passes that need evidence.
    """
    call = call.deciding
    passes = {started.router: started.router.observed(call, started.rule) for started in asking}
    looking = ModelPass(call.module, routers)
    for started in asking:
        looking.parts[started.router] = BundlePass(passes[started.router], started.rule)
    evidence = {router: each.evidence for router, each in passes.items()}
    with torch.no_grad(), resumed([looking]):
        goes_on = any(started.rule.observes_answers for started in asking)
        read_in = {path for started in asking for path in started.read_in}
        module = call.module if goes_on else shortened(call.module, read_in)
        return evidence, _look(call, evaluated(module), goes_on=goes_on)


def _look(call: ForwardCall, module: Any, *, goes_on: bool) -> ObservedBase | None:
    own = call.stretch.own
    before = None if call.is_new else CacheMemory.of(call.cache)
    past = None if before is None else before.observed
    if past is not None:
        past.follow(call.past_tokens)
        own = torch.cat([past.own, own], dim=1)
    cache = None if past is None else past.cache
    # `forward` bypasses the hooks that begin a pass.
    output = module.forward(**call.observed_arguments(own, past=cache, use_cache=goes_on))
    return ObservedBase(cache_in(output), own) if goes_on else None


def cache_in(output: Any) -> Any:
    """Return the cache in a model's output, or None."""
    if isinstance(output, tuple):
        return next((part for part in output if hasattr(part, "get_seq_length")), None)
    return getattr(output, "past_key_values", None)


def evaluated(module: nn.Module) -> Any:
    """Return a module without dropout, which would make the same request look different each time.

    Setting the mode of the module itself would change passes of other threads.
    """
    if not any(part.training for part in module.modules()):
        return module
    return _copied(module, {})


def _copied(module: nn.Module, copies: dict[nn.Module, nn.Module]) -> nn.Module:
    """Return a module in the mode of evaluation that shares the original's tensors, as its parts do."""
    if module in copies or isinstance(module, torch.jit.ScriptModule):
        return copies.get(module, module)
    copy = copies[module] = shallow_copy(module, {})
    copy.__dict__["training"] = False
    children: Mapping[str, nn.Module | None] = module._modules
    copy.__dict__["_modules"] = {
        name: None if child is None else _copied(child, copies) for name, child in children.items()
    }
    return copy
