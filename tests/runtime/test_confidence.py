"""The confidence of a decision: a share, whatever rounding leaves."""

from __future__ import annotations

import pytest
import torch

from meteora_registry.runtime.scopes.decision import Stretch
from meteora_registry.runtime.scopes.prompt import PromptDecision
from meteora_registry.runtime.scopes.routing_rule import RoutingRule
from meteora_registry.runtime.scopes.segment import SegmentDecision
from meteora_registry.schemas.gate_choices import Scope


@pytest.mark.parametrize("scope", ["prompt", "segment"])
def test_confidence_is_never_above_one(scope: Scope) -> None:
    rule = RoutingRule(scope, top_k=1, temperature=1.0, abstain=None)
    own = torch.ones(1, 3, dtype=torch.bool)
    # The mean over modules of posteriors that are 1 for one member may be a little more.
    log_posterior = torch.tensor([[[1e-6, -30.0]] * 3])
    kind = PromptDecision if scope == "prompt" else SegmentDecision
    found = kind.decide(rule, log_posterior, Stretch(own, own, has_prompt=True))
    assert [each.confidence for each in found.describe(("legal", "medical"), 3)] == [1.0]
