"""Routing set aside: one member serves every token, as if it were loaded alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..schemas.errors import UsageError
from .layer import MeteoraLayer


@contextmanager
def force_adapter(model: nn.Module, name: str) -> Iterator[None]:
    """Within the block every token goes to the member ``name``, in every module, with weight 1.

    Works on a ``PeftModel`` and on a transformers model with a loaded bundle, for the bundles that are
    active on entry. Blocks nest; leaving one, by an exception too, brings back what was before. A
    backward pass that recomputes its forward (gradient checkpointing) belongs inside the block. The
    choice is kept on the model's layers: threads that share a model share it, so force from one thread
    at a time.

    Raises:
        UsageError: the model has no active bundle, or a bundle without such a member.
    """
    layers = [module for module in model.modules() if isinstance(module, MeteoraLayer)]
    forced = [_forced_in(layer, name) for layer in layers]
    if not any(forced):
        raise UsageError(
            "the model has no active bundle to force a member of",
            hint="load one with `PeftModel.from_pretrained` or `model.load_adapter`, or set it active",
        )
    before = [dict(layer.meteora_forced) for layer in layers]
    try:
        for layer, choice in zip(layers, forced, strict=True):
            layer.meteora_forced |= choice
        yield
    finally:
        for layer, choice in zip(layers, before, strict=True):
            layer.meteora_forced = choice


def _forced_in(layer: MeteoraLayer, name: str) -> dict[str, int]:
    active = [adapter for adapter in layer.active_adapters if adapter in layer.meteora_plans]
    for adapter in active:
        members = layer.meteora_plans[adapter].members
        if name not in members:
            raise UsageError(
                f"bundle `{adapter}` has no member `{name}`, "
                f"it has {', '.join(f'`{member}`' for member in members)}"
            )
    return {adapter: layer.meteora_plans[adapter].members.index(name) for adapter in active}
