"""The plain base's own pass over a call's tokens, from which decisions are made.

It runs the base with no member and without dropout, on layers whose modes no other thread sees: those of a
model in training are copied, with the same tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..schemas.errors import UsageError
from .cache_memory import CacheMemory, ObservedBase
from .calls import ForwardCall, cache_in
from .current_pass import BundlePass, ModelPass, resumed
from .router import BundleRouter, StartedPass
from .scopes.passes import Evidence
from .shallow_copy import shallow_copy
from .shortened import shortened


def observe(
    call: ForwardCall, routers: Sequence[BundleRouter], asking: Sequence[StartedPass]
) -> tuple[dict[BundleRouter, Evidence], ObservedBase | None]:
    """Return the evidence of each asking bundle's gates, and the base's cache if it is to read answers too.

    The base reads all of a prompt of which the call has a piece. No layer runs behind the last one whose
    evidence counts.

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
        # A base with a state asks its last layers whether they have read anything before.
        is_whole = goes_on and getattr(call.module, "_is_stateful", False)
        module = call.module if is_whole else shortened(call.module, read_in)
        return evidence, _look(call, _reader(evaluated(module), read_in), goes_on=goes_on)


def _reader(module: nn.Module, paths: Iterable[str]) -> nn.Module:
    """Return the part of a base that these modules are in: without the head, unless one of them is on it.

    A head costs as much as many layers, and a trainer may have put its loss there.
    """
    prefix = getattr(module, "base_model_prefix", "")
    backbone = getattr(module, prefix, None) if prefix else None
    inside = all(path.startswith(f"{prefix}.") for path in paths)
    return backbone if isinstance(backbone, nn.Module) and inside else module


def _look(call: ForwardCall, reader: nn.Module, *, goes_on: bool) -> ObservedBase | None:
    own = call.stretch.own
    before = None if call.is_new else CacheMemory.of(call.cache)
    past = None if before is None else before.observed
    if past is None and not call.is_new:
        raise UsageError(
            f"`{type(reader).__name__}` returned no cache, and without one the plain base cannot read on, as "
            "the bundle's scope `segment` needs",
            hint="route by token within `route_as(model, scope='token')`",
        )
    if past is not None:
        past.follow(call.past_tokens)
        own = torch.cat([past.own, own], dim=1)
    cache = _copy_that_records(call) if past is None else past.cache
    arguments = call.observed_arguments(reader, own, past=cache, use_cache=goes_on)
    # A call of the base itself would begin a pass.
    is_base = type(reader) is type(call.module)
    output = type(reader).forward(reader, **arguments) if is_base else reader(**arguments)
    left = cache_in(output) if goes_on else None
    return None if left is None else ObservedBase(left, own)


def _copy_that_records(call: ForwardCall) -> Any:
    """Return a copy of an empty cache whose layers keep what they could be asked to take back."""
    layers = getattr(call.cache, "layers", ()) if call.is_new else ()
    return copy.deepcopy(call.cache) if any(getattr(each, "record_past", False) for each in layers) else None


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
    twin = copies[module] = shallow_copy(module, {})
    twin.__dict__["training"] = False
    children: Mapping[str, nn.Module | None] = module._modules
    twin.__dict__["_modules"] = {
        name: None if child is None else _copied(child, copies) for name, child in children.items()
    }
    return twin
