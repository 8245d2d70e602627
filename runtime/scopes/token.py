"""Scope ``token``, the paper's: every module decides for every token, by its own gate or its source's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...kernels.routing import Gate, Routing
from ...schemas.errors import UsageError
from .passes import RoutingPass


class SharedRoutings:
    """Routings on their way from the modules that decide to those that take them, within one pass.

    A routing is handed to each taker once, and is gone after the last: one that lies here was decided in
    this very pass.
    """

    def __init__(self, sources: Mapping[str, str]) -> None:
        self._sources = sources
        self._takers: dict[str, frozenset[str]] = {}
        for path, source in sources.items():
            self._takers[source] = self._takers.get(source, frozenset()) | {path}
        self._waiting: dict[str, tuple[Routing, set[str]]] = {}

    def clear(self) -> None:
        """Forget what an earlier pass left, such as one that failed half way."""
        self._waiting.clear()

    def put(self, path: str, routing: Routing) -> None:
        """Keep what ``path`` decided for the modules that take it, if there are any."""
        if path in self._takers:
            self._waiting[path] = (routing, set(self._takers[path]))

    def take(self, path: str, x: Tensor) -> Routing:
        """The routing that the source of ``path`` decided for these tokens in this pass.

        Raises:
            UsageError: the source has not run in this pass, or for other tokens.
        """
        source = self._sources[path]
        routing, takers = self._waiting.get(source, (None, set[str]()))
        if routing is None or path not in takers:
            raise UsageError(
                f"`{path}` takes its routing from `{source}`, which decided nothing for it in this pass",
                hint="the source must run first; fuse or fit the bundle without `gate.sources` for these",
            )
        takers.discard(path)
        if not takers:
            del self._waiting[source]
        if routing.selection.shape[:-1] != x.shape[:-1]:
            raise UsageError(
                f"`{path}` was given tokens {list(x.shape[:-1])}, but its source `{source}` decided for "
                f"{list(routing.selection.shape[:-1])}"
            )
        return Routing(routing.selection.to(x.device), routing.weights.to(x.device))


class TokenPass(RoutingPass):
    """A pass in which every module decides for itself, but for those that have a source."""

    def __init__(self, shared: SharedRoutings) -> None:
        self._shared = shared

    def choose(self, path: str, x: Tensor, gate: Gate | None) -> Gate | Routing:
        """The module's own gate, or what its source decided."""
        return self._shared.take(path, x) if gate is None else gate

    def report(self, path: str, routing: Routing) -> None:
        """Hand the decision to the modules that take it."""
        self._shared.put(path, routing)
