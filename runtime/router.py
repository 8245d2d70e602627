"""One bundle's routing on one model: its answers to the bundle's layers, and the start of each forward pass.

All layers of a bundle share its router. Before each forward pass of the model the router gets the call and
starts the pass: by the bundle's scope, unless a member is forced or another rule holds. The router itself has
no state of any pass.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from ..schemas.errors import UsageError
from ..schemas.gate_choices import Scope
from .cache_memory import CacheMemory
from .calls import ForwardCall
from .choices import Choices
from .current_pass import BundlePass, is_backward
from .routing_record import PassRecord, RoutingRecord
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
from .scopes.request_gate import ObservedRequestPass, RequestEvidence
from .scopes.routing_rule import RoutingRule
from .scopes.segment import SegmentDecision
from .training_checks import LoadedGates

if TYPE_CHECKING:
    from .layer import MeteoraLayer
    from .peft_config import MeteoraConfig


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
        template: the tokens of the chat template, which request gates do not count; None without one.
        rules: the rules that `route_as` set in place of the bundle's own.
        overrides: the passes that replace every other while a block of code forces them, such as that of one
            member.
        records: where routings are recorded, within `routing` blocks.
        loaded_gates: the values that the gates were loaded with.
    """

    def __init__(self, adapter_name: str, config: MeteoraConfig) -> None:
        bundle = config.bundle
        self.adapter_name = adapter_name
        self.members = bundle.names
        self.loaded_gates = LoadedGates(config)
        self.layers: dict[str, MeteoraLayer] = {}
        self.template = None if bundle.gate.request is None else bundle.gate.request.template
        self.rules: Choices[RoutingRule] = Choices()
        self.overrides: Choices[RoutingPass] = Choices()
        self.records: Choices[RoutingRecord] = Choices()
        self._own_rule = RoutingRule.of(bundle)
        self._sources = bundle.gate.sources

    @property
    def rule(self) -> RoutingRule:
        """How the bundle routes a pass that begins now on this thread."""
        return self.rules.latest or self._own_rule

    @cached_property
    def gated_paths(self) -> tuple[str, ...]:
        """The modules that have a gate of their own."""
        plans = {path: layer.meteora_plans[self.adapter_name] for path, layer in self.layers.items()}
        return tuple(path for path, plan in plans.items() if plan.has_gate)

    @property
    def is_active(self) -> bool:
        """Whether the bundle takes part in the model's forward passes."""
        return self.is_chosen and not next(iter(self.layers.values())).disable_adapters

    @property
    def is_chosen(self) -> bool:
        """Whether the bundle is loaded and among the model's active adapters, which may be disabled."""
        return self.is_loaded and self.adapter_name in next(iter(self.layers.values())).active_adapters

    @property
    def is_loaded(self) -> bool:
        """Whether the bundle is still on the model."""
        return self.adapter_name in next(iter(self.layers.values())).meteora_plans

    def start(self, call: ForwardCall) -> StartedPass:
        """Settle by which rule and for whom the pass of a call routes."""
        _thread.outside.pop(self, None)
        return StartedPass(self, call, self.rule, self.overrides.latest)

    def observed(self, call: ForwardCall, rule: RoutingRule) -> ObservedPass | ObservedRequestPass:
        """Return the plain base's pass over a call's tokens, with room for the evidence that a rule needs."""
        if rule.by_request_gates is None:
            return ObservedPass(Evidence(*call.shape, len(self.members)), frozenset(self.read_by(rule)))
        gates = {
            path: self.layers[path].request_gate_of(self.adapter_name)
            for path in rule.by_request_gates.modules
        }
        return ObservedRequestPass(RequestEvidence(*call.shape, gates))

    def read_by(self, rule: RoutingRule) -> tuple[str, ...]:
        """Return the modules in which a decision by a rule reads its evidence."""
        request = rule.by_request_gates
        if request is not None:
            return request.modules
        return self.gated_paths if rule.evidence is None else rule.evidence

    def by_token(self) -> TokenPass:
        """Return a new pass in which every module decides by its own gate."""
        return TokenPass(SharedRoutings(self._sources))

    def outside(self, path: str) -> BundlePass:
        """Return the pass for a module that is called by itself: the thread's own, until the choice changes.

        Raises:
            UsageError: a backward pass computes the module again, and its forward pass is not known.
        """
        if is_backward():
            raise UsageError(
                f"`{path}` is computed again in a backward pass, and nothing shows to which forward pass it "
                "belongs",
                hint="switch gradient checkpointing on with the model's `activation_checkpointing_enable`",
            )
        rule, override = self.rule, self.overrides.latest
        kept = _thread.outside.get(self)
        if kept is None or kept[:2] != (rule, override):
            routing = override or SCOPE_ROUTINGS[rule.scope].idle(self.by_token())
            kept = _thread.outside[self] = (rule, override, BundlePass(routing, rule))
        kept[2].record = PassRecord.alone(self.records.nearest)
        return kept[2]


class _Thread(threading.local):
    def __init__(self) -> None:
        Kept = tuple[RoutingRule, RoutingPass | None, BundlePass]
        self.outside: weakref.WeakKeyDictionary[BundleRouter, Kept] = weakref.WeakKeyDictionary()


_thread = _Thread()


class StartedPass:
    """One bundle's pass of a call, before its members are known.

    Attributes:
        router: the bundle's.
        rule: the rule that holds for the pass.
    """

    def __init__(
        self, router: BundleRouter, call: ForwardCall, rule: RoutingRule, override: RoutingPass | None
    ) -> None:
        self.router = router
        self.rule = rule
        self._call = call
        self._override = override
        record = router.records.nearest
        self._record = None if record is None else PassRecord(record, call)

    @property
    def decides_ahead(self) -> bool:
        """Whether members are chosen from a pass of the plain base, before the routed pass."""
        return self._override is None and self.rule.decides_ahead

    @property
    def is_forced(self) -> bool:
        """Whether a pass replaces every other."""
        return self._override is not None

    @property
    def passes_no_gradient(self) -> bool:
        """Whether no token is routed by a gate's own weights, which alone have a gradient."""
        if self.is_forced or not self.rule.decides_ahead:
            return self.is_forced
        stretch = self._call.stretch
        return self.rule.scope != "prompt+token" or bool((stretch.prompt | ~stretch.own).all())

    @property
    def needs_evidence(self) -> bool:
        """Whether the plain base has to read the call's tokens before the routed pass."""
        if not self.decides_ahead:
            return False
        return self._kept is None or (self.rule.observes_answers and not self._call.goes_on_in_prompt)

    @property
    def read_in(self) -> tuple[str, ...]:
        """The modules in which the evidence is read."""
        return self.router.read_by(self.rule)

    def settle(self, evidence: Evidence | None) -> tuple[BundlePass, RequestDecision | None]:
        """Return the pass, and what the call's cache is to remember."""
        by_token = self.router.by_token()
        if not self.decides_ahead:
            if self._override is None:
                routing = SCOPE_ROUTINGS[self.rule.scope].idle(by_token)
            else:
                routing = self._override.for_tokens(self._call.past_tokens, self._call.leading_shape)
            return BundlePass(routing, self.rule, self._record), None
        decision = self._decide(evidence)
        if self._record is not None:
            self._record.decision = decision
        routing = decision.begin(self._call.stretch, self._call.past_tokens, by_token)
        return BundlePass(routing, self.rule, self._record), decision

    def _decide(self, evidence: Evidence | None) -> RequestDecision:
        kept = self._kept
        if kept is not None and self._call.goes_on_in_prompt:
            return kept
        if kept is not None:
            return kept.advance(self._call.past_tokens, None if evidence is None else evidence.mean)
        decide = SCOPE_ROUTINGS[self.rule.scope].decide
        if evidence is None or decide is None:
            raise RuntimeError(f"bundle `{self.router.adapter_name}` has to decide without any evidence")
        return decide(self.rule, evidence.mean, self._counted(self._call.deciding))

    def _counted(self, call: ForwardCall) -> Stretch:
        """Return a call's tokens, without the chat template's where request gates decide."""
        ids, stretch, template = call.arguments.get("input_ids"), call.stretch, self.router.template
        if template is None or ids is None or self.rule.by_request_gates is None:
            return stretch
        return replace(stretch, counted=outside_template(ids, stretch.prompt, template))

    @property
    def _kept(self) -> RequestDecision | None:
        """What the call's cache remembers of this bundle; None for new sequences.

        Raises:
            UsageError: the sequences were begun, but not under this bundle's present rule.
        """
        if self._call.is_new:
            return None
        memory = CacheMemory.of(self._call.cache)
        kept = None if memory is None else memory.kept_by(self.router.adapter_name, self.rule)
        if kept is None:
            raise UsageError(
                f"the cache holds tokens of which bundle `{self.router.adapter_name}` decided nothing by its "
                "present rule: the base, a forced member or another rule wrote them",
                hint="begin the request without a cache, or route by token within "
                "`route_as(model, scope='token')`",
            )
        return kept
