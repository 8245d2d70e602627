"""Scope ``layer``: one decision for each token and layer; the layer's first module with a gate makes it."""

from __future__ import annotations

from torch import Tensor

from ...kernels.routing import Gate, Routing
from ...schemas.errors import UsageError
from ...schemas.trace import ModulePlace
from .passes import RoutingPass, fit_tokens


def layer_of(path: str) -> str:
    """The layer that a module belongs to: its path up to the first number, or itself without one."""
    return ModulePlace.of(path).layer or path


class LayerPass(RoutingPass):
    """A pass in which the first module of a layer decides and the rest of the layer follows it.

    The module that decided first does so again when it runs again: gradient checkpointing recomputes a
    layer from its beginning, and finds there what the forward pass found.
    """

    def __init__(self) -> None:
        self._decided: dict[str, tuple[str, Routing]] = {}

    def choose(self, path: str, x: Tensor, gate: Gate | None) -> Gate | Routing:
        """The module's own gate if it is the layer's first, else what that one decided.

        Raises:
            UsageError: the module has no gate and none of its layer has run, or for other tokens.
        """
        decider, routing = self._decided.get(layer_of(path), (path, None))
        if routing is not None and decider != path:
            return fit_tokens(routing, x, path)
        if gate is None:
            raise UsageError(f"`{path}` has no gate of its own, and no module of its layer decided before it")
        return gate

    def report(self, path: str, routing: Routing) -> None:
        """Keep the decision for the rest of the layer."""
        self._decided[layer_of(path)] = (path, routing)
