"""Training of gates: refused or warned of where no gradient reaches them, and noticed when they are saved.

torch says neither that a decision passes no gradient nor that the only slot of a token has the weight 1,
whatever its gate does.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..schemas.bundle import TENSOR_GATE, TENSOR_GATE_BIAS, TRAINED
from ..schemas.errors import UsageError

if TYPE_CHECKING:
    from .layer import MeteoraLayer
    from .router import BundleRouter, StartedPass

_GATES = (TENSOR_GATE, TENSOR_GATE_BIAS)
_ONE_SLOT = (
    "the gates are trained with `top_k` 1: the one member that a token takes has the weight 1 whatever its "
    "gate computes, so the gradient is 0 and nothing is learnt; train within `route_as(model, top_k=2)`"
)


def check_training(module: nn.Module, started: list[StartedPass]) -> None:
    """Check a pass of a base in training, with gradients, for gates that are trained and get none.

    Raises:
        UsageError: nothing else is trained either, so there would be no gradient at all.
    """
    for each in started:
        gates = [gate for _, gate in trained_gates(each.router)]
        if not gates:
            continue
        remember_gates(each.router)
        if each.passes_no_gradient:
            _refuse_unless_others(module, gates, each)
        elif each.rule.top_k == 1:
            warnings.warn(_ONE_SLOT, UserWarning, stacklevel=2)


def _refuse_unless_others(module: nn.Module, gates: list[Tensor], started: StartedPass) -> None:
    own = {id(gate) for gate in gates}
    if any(each.requires_grad and id(each) not in own for each in module.parameters()):
        return
    cause = "a member is forced" if started.is_forced else f"the scope `{started.rule.scope}` decides ahead"
    raise UsageError(
        f"the gates of bundle `{started.router.adapter_name}` cannot be trained here: {cause}, and that "
        "passes no gradient",
        hint="train within `route_as(model, scope='token', top_k=2)`, or fit the gates with "
        "`meteora-registry gate fit`",
    )


def trained_gates(router: BundleRouter) -> Iterator[tuple[str, Tensor]]:
    """Yield each gate, and each bias of one, that requires a gradient, by its name."""
    for path, layer in router.layers.items():
        for tensor in _GATES:
            parameters = getattr(layer, tensor)
            if router.adapter_name in parameters and parameters[router.adapter_name].requires_grad:
                yield f"{path}.{tensor}", parameters[router.adapter_name]


def remember_gates(router: BundleRouter) -> None:
    """Keep the gates as they are before their first training step."""
    for name, gate in trained_gates(router):
        if name not in router.untrained_gates:
            router.untrained_gates[name] = gate.detach().clone()


def note_training(layer: MeteoraLayer, *_: object) -> None:
    """Change the config that a save writes, if gates of this layer have other values than before training."""
    for adapter_name, router in layer.meteora_routers.items():
        path = layer.meteora_plans[adapter_name].layout.path
        for tensor in _GATES:
            before = router.untrained_gates.get(f"{path}.{tensor}")
            if before is not None and not torch.equal(
                before, layer.tensor_of(tensor, adapter_name).to(before.device)
            ):
                router.config.gate = router.config.gate | {"fitted": {"method": TRAINED, "data": []}}
