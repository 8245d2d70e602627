"""The modules whose gates decide segments, in a config: what makes no sense, and what is required."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meteora_registry.schemas.bundle import BundleConfig
from meteora_registry.schemas.errors import InvalidDocument


def config_of(evidence: list[str] | None, **changes: Any) -> BundleConfig:
    gate = {
        "kind": "normalised",
        "scope": "segment",
        "bias": True,
        "eps": 1e-6,
        "sources": {"a.v": "a.q"},
        "initialisation": None,
        "fitted": {"method": "imported", "data": []},
    }
    value = {
        "peft_type": "METEORA",
        "meteora_format": 1,
        "required_features": ["gate-evidence", "gate-scope", "gate-sources"],
        "task_type": None,
        "base_model_name_or_path": "org/base",
        "revision": None,
        "inference_mode": True,
        "target_modules": ["a.o", "a.q", "a.v"],
        "members": [{"name": name, "rank": 4, "scaling": 1.0, "overrides": {}} for name in ("one", "two")],
        "rank_alignment": 8,
        "top_k": 1,
        "temperature": 1.0,
        "gate": gate | ({} if evidence is None else {"evidence": evidence}) | changes.pop("gate", {}),
    }
    return BundleConfig.read(json.dumps(value | changes).encode())


def test_config_with_evidence_comes_back_and_one_without_has_no_key() -> None:
    config = config_of(["a.q", "a.o"])
    assert config.gate.evidence == ("a.q", "a.o")
    assert BundleConfig.read(config.to_bytes()) == config
    assert b'"evidence"' not in config_of(None).to_bytes()


@pytest.mark.parametrize(
    ("evidence", "changes", "problem"),
    [
        (["a.z"], {}, "`gate.evidence` names `a.z`, which is not a target module"),
        (["a.v"], {}, "`evidence` names `a.v`, which has no gate of its own"),
        (["a.q", "a.q"], {}, "`evidence` names a module twice"),
        (
            ["a.q"],
            {"gate": {"scope": "token"}},
            "`evidence` goes with a scope that decides ahead by the modules' own gates, found `token`",
        ),
        (
            ["a.q"],
            {"required_features": ["gate-scope", "gate-sources"]},
            "the gate needs `gate-evidence` in `required_features`, which lacks it",
        ),
        ([], {}, "at least 1 item"),
    ],
    ids=["no-target", "no-gate", "twice", "scope", "feature", "empty"],
)
def test_evidence_that_makes_no_sense_is_refused(
    evidence: list[str], changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidDocument) as caught:
        config_of(evidence, **changes)
    assert problem in str(caught.value)


def test_evidence_beside_request_gates_is_refused() -> None:
    request = {
        "modules": ["a.q"],
        "background": ["general"],
        "forms": ["plain"],
        "template": None,
        "centre": 0.0,
        "spread": 1.0,
        "quantiles": None,
        "held_out": None,
    }
    features = ["gate-evidence", "gate-request", "gate-scope", "gate-sources"]
    with pytest.raises(InvalidDocument, match="found `prompt` with `request`"):
        config_of(["a.q"], gate={"scope": "prompt", "request": request}, required_features=features)
