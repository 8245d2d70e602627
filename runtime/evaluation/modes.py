"""The modes of an evaluation: which members serve the tokens while a mode answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import get_args

from torch import Tensor, nn

from ...fuser.gates import arrow_gate
from ...kernels.routing import Gate
from ...schemas.bundle import TENSOR_A, TENSOR_B
from ...schemas.evaluation import Mode
from ...schemas.gate_choices import INITIAL_GATE_KINDS, Scope
from ..active_bundles import force_adapter, only_router, overridden, route_as, uniform
from ..layer import MeteoraLayer
from ..loaded_bundle import LoadedBundle
from ..scopes.passes import RoutingPass

_SCOPES: Mapping[str, Scope] = {scope: scope for scope in get_args(Scope)}


def serve_as(loaded: LoadedBundle, mode: Mode) -> AbstractContextManager[None]:
    """Let the model answer in a mode within the block; for ``member`` see ``serve_task``."""
    model = loaded.model
    if mode in _SCOPES:
        return route_as(model, scope=_SCOPES[mode])
    match mode:
        case "base":
            without: AbstractContextManager[None] = model.disable_adapter()
            return without
        case "arrow":
            return arrow(model)
        case "uniform":
            return uniform(model)
        case _:
            return route_as(model)


def serve_task(loaded: LoadedBundle, mode: Mode, member: str) -> AbstractContextManager[None]:
    """Answer items of the task of ``member`` within the block: in the mode ``member`` by it alone."""
    return force_adapter(loaded.model, member) if mode == "member" else nullcontext()


@contextmanager
def arrow(model: nn.Module) -> Iterator[None]:
    """Route the active bundle by arrow's gates within the block, in place of its own.

    A member's row is the direction that its delta amplifies most, worked out of the factors, and every module
    decides for every token (Ostapenko et al., arXiv 2405.11157). ``top_k`` and temperature stay the bundle's.

    Raises:
        UsageError: the model has no active bundle, or more than one.
    """
    router = only_router(model)
    gates = {
        path: Gate(
            weight=_arrow_of(layer, router.adapter_name),
            bias=None,
            kind=INITIAL_GATE_KINDS["arrow"],
            top_k=router.rule.top_k,
            temperature=router.rule.temperature,
        )
        for path, layer in router.layers.items()
        if layer.meteora_plans[router.adapter_name].has_factors
    }
    with overridden(model, lambda _: _OwnGatesPass(gates)):
        yield


@dataclass(frozen=True, slots=True)
class _OwnGatesPass(RoutingPass):
    """A pass in which every module decides by another gate than the bundle's."""

    gates: Mapping[str, Gate]

    def choose(self, path: str, x: Tensor, gate: Gate | None) -> Gate:
        """Return the module's other gate."""
        return self.gates[path]


def _arrow_of(layer: MeteoraLayer, adapter_name: str) -> Tensor:
    A, Bt = (layer.tensor_of(tensor, adapter_name).detach() for tensor in (TENSOR_A, TENSOR_B))
    layout = layer.meteora_plans[adapter_name].layout
    rows = [layout.rows_of(member) if rank else None for member, rank in enumerate(layout.ranks)]
    factors = [None if own is None else (A[own].cpu(), Bt[own].T.cpu()) for own in rows]
    return arrow_gate(factors, A.shape[1]).to(A.device)
