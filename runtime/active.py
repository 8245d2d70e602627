"""The bundles that a model runs at the moment."""

from __future__ import annotations

from torch import nn

from ..schemas.errors import UsageError
from .layer import MeteoraLayer
from .router import BundleRouter


def active_routers(model: nn.Module) -> list[BundleRouter]:
    """The routers of a model's active bundles; of a ``PeftModel`` or a transformers model.

    Raises:
        UsageError: there is none.
    """
    routers: dict[str, BundleRouter] = {}
    for layer in model.modules():
        if isinstance(layer, MeteoraLayer):
            active = [name for name in layer.active_adapters if name in layer.meteora_routers]
            routers |= {name: layer.meteora_routers[name] for name in active}
    if not routers:
        raise UsageError(
            "the model has no active bundle",
            hint="load one with `PeftModel.from_pretrained` or `model.load_adapter`, or set it active",
        )
    return list(routers.values())


def only_router(model: nn.Module) -> BundleRouter:
    """The router of a model's one active bundle.

    Raises:
        UsageError: there is none, or more than one.
    """
    routers = active_routers(model)
    if len(routers) > 1:
        listed = ", ".join(f"`{router.adapter_name}`" for router in routers)
        raise UsageError(
            f"the model has {len(routers)} active bundles, {listed}, expected one",
            hint="set one of them active with `set_adapter`",
        )
    return routers[0]
