"""One bundle's routing on one model: its answers to the bundle's layers, and the start of each forward pass.

All layers of a bundle share its router. Before each forward pass of the model the router gets the call and
sets up the pass: by the bundle's scope, unless a member is forced or another rule holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from ..kernels.routing import Gate, Routing
from ..schemas.bundle import BundleConfig
from ..schemas.errors import UsageError
from ..schemas.gate_choices import Scope
from .cache_memory import CacheMemory
from .calls import ForwardCall
from .routing_record import RoutingRecord
from .scopes.decision import RequestDecision, Stretch
from .scopes.passes import (
    Evidence,
    LayerPass,
    ObservedPass,
    RoutingPass,
    SharedRoutings,
    TokenPass,
    UndecidedPass,
)
from .scopes.prompt import PromptDecision, outside_template
from .scopes.request_gate import RequestEvidence, RequestPass
from .scopes.routing_rule import RoutingRule
from .scopes.segment import SegmentDecision

if TYPE_CHECKING:
    from .layer import MeteoraLayer


@dataclass(frozen=True, slots=True)
class ScopeRouting:
    """The way that a scope routes.

    Attributes:
        idle: the pass while the scope has decided nothing: all there is for a scope that decides by token.
        decide: makes the decision for sequences that begin, from their evidence; None for such a scope.
    """

    idle: Callable[[TokenPass], RoutingPass]
    decide: Callable[[RoutingRule, Tensor, Stretch], RequestDecision] | None = None


SCOPE_ROUTINGS: dict[Scope, ScopeRouting] = {
    "token": ScopeRouting(idle=lambda by_token: by_token),
    "layer": ScopeRouting(idle=lambda by_token: LayerPass()),
    "prompt": ScopeRouting(idle=lambda by_token: UndecidedPass("prompt"), decide=PromptDecision.decide),
    "prompt+token": ScopeRouting(
        idle=lambda by_token: UndecidedPass("prompt+token"), decide=PromptDecision.decide
    ),
    "segment": ScopeRouting(idle=lambda by_token: UndecidedPass("segment"), decide=SegmentDecision.decide),
}


class BundleRouter:
    """The router of one bundle.

    Attributes:
        layers: the bundle's layers by module path.
        rule: the bundle's own, or the one that `route_as` set.
        override: the pass that replaces every other while a block of code forces it, such as that of one
            member.
        observed: the pass of the plain base, while it runs.
        record: where routings are recorded, within a `routing` block.
    """

    def __init__(self, adapter_name: str, bundle: BundleConfig) -> None:
        self.adapter_name = adapter_name
        self.members = bundle.names
        self.layers: dict[str, MeteoraLayer] = {}
        self.override: RoutingPass | None = None
        self.observed: RoutingPass | None = None
        self.record: RoutingRecord | None = None
        self._shared = SharedRoutings(bundle.gate.sources)
        self._template = None if bundle.gate.request is None else bundle.gate.request.template
        self._by_token = TokenPass(self._shared)
        self.rule = RoutingRule.of(bundle)

    @property
    def rule(self) -> RoutingRule:
        """How the bundle routes; a new rule holds from the next forward pass on."""
        return self._rule

    @rule.setter
    def rule(self, rule: RoutingRule) -> None:
        self._rule = rule
        self._current = self._idle_pass()

    def observe(self, call: ForwardCall) -> ObservedPass | RequestPass:
        """Return the pass of the plain base over a call's tokens, with room for its evidence."""
        if self.rule.by_request_gates is None:
            return ObservedPass(Evidence(*call.shape, len(self.members)))
        gates = {path: layer.request_gate_of(self.adapter_name) for path, layer in self.layers.items()}
        present = {path: gate for path, gate in gates.items() if gate is not None}
        return RequestPass(RequestEvidence(*call.shape, present))

    @property
    def is_active(self) -> bool:
        """Whether the bundle takes part in the model's forward passes."""
        layer = next(iter(self.layers.values()))
        return self.is_loaded and self.adapter_name in layer.active_adapters and not layer.disable_adapters

    @property
    def is_loaded(self) -> bool:
        """Whether the bundle is still on the model."""
        return self.adapter_name in next(iter(self.layers.values())).meteora_plans

    def choose(self, path: str, x: Tensor, gate: Gate | None) -> Gate | Routing | None:
        """Return what serves a module's tokens x [..., in]: its gate, a routing, or None for no member."""
        choice = (self.observed or self.override or self._current).choose(path, x, gate)
        if isinstance(choice, Routing):
            self._record_routing(path, choice)
        return choice

    def report(self, path: str, routing: Routing) -> None:
        """Pass on the decision of a module's gate, and record it."""
        (self.override or self._current).report(path, routing)
        self._record_routing(path, routing)

    def needs_evidence(self, call: ForwardCall) -> bool:
        """Return whether the plain base has to read the call's tokens before the routed pass."""
        if self.override is not None or not self.rule.decides_ahead:
            return False
        return self._kept_for(call) is None or self.rule.observes_answers

    def begin(self, call: ForwardCall, evidence: Evidence | None) -> RequestDecision | None:
        """Set up the pass of a call; return what its cache is to remember."""
        self._shared.clear()
        self._current = self._idle_pass()
        if self.record is not None:
            self.record.begin(call)
        if self.override is not None or not self.rule.decides_ahead:
            return None
        decision = self._decide(call, evidence)
        self._current = decision.begin(call.stretch, self._by_token)
        if self.record is not None:
            self.record.decide(decision)
        return decision

    def _decide(self, call: ForwardCall, evidence: Evidence | None) -> RequestDecision:
        kept = self._kept_for(call)
        if kept is not None:
            return kept.advance(call.past_tokens, None if evidence is None else evidence.mean)
        decide = SCOPE_ROUTINGS[self.rule.scope].decide
        if evidence is None or decide is None:
            raise RuntimeError(f"bundle `{self.adapter_name}` has to decide without any evidence")
        return decide(self.rule, evidence.mean, self._counted(call))

    def _counted(self, call: ForwardCall) -> Stretch:
        """Return a call's tokens, without the chat template's where request gates decide."""
        ids, stretch = call.arguments.get("input_ids"), call.stretch
        if self._template is None or ids is None or self.rule.by_request_gates is None:
            return stretch
        return replace(stretch, counted=outside_template(ids, stretch.prompt, self._template))

    def _kept_for(self, call: ForwardCall) -> RequestDecision | None:
        """Return what the call's cache remembers of this bundle; None for new sequences.

        Raises:
            UsageError: the sequences were begun, but not under this bundle's present rule.
        """
        if call.is_new:
            return None
        memory = CacheMemory.of(call.cache)
        kept = None if memory is None else memory.kept.get(self.adapter_name)
        if kept is None or kept.rule != self.rule:
            raise UsageError(
                f"the cache holds tokens of which bundle `{self.adapter_name}` decided nothing by its "
                "present rule: the base, a forced member or another rule wrote them",
                hint="begin the request without a cache, or route by token within "
                "`route_as(model, scope='token')`",
            )
        return kept

    def _idle_pass(self) -> RoutingPass:
        return SCOPE_ROUTINGS[self.rule.scope].idle(self._by_token)

    def _record_routing(self, path: str, routing: Routing) -> None:
        if self.record is not None and self.observed is None:
            self.record.add(path, routing)
