"""Request gates in a bundle's config: what they are described by, and what makes no sense."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meteora_registry.schemas.bundle import QUANTILES, BundleConfig
from meteora_registry.schemas.errors import InvalidDocument
from meteora_registry.schemas.inventory import Dtype

REQUEST: dict[str, Any] = {
    "modules": ["a.q"],
    "background": ["general"],
    "forms": ["plain", "chat"],
    "template": {"before": [1, 2], "behind": [3]},
    "centre": -1.5,
    "spread": 2.0,
    "quantiles": [float(place) for place in range(QUANTILES)],
    "held_out": None,
}


def config_of(request: dict[str, Any] | None, **changes: Any) -> BundleConfig:
    gate = {
        "kind": "normalised",
        "scope": "prompt",
        "bias": True,
        "eps": 1e-6,
        "sources": {},
        "abstain": 0.05,
        "request": request,
        "initialisation": None,
        "fitted": {"method": "imported", "data": []},
    }
    value = {
        "peft_type": "METEORA",
        "meteora_format": 1,
        "required_features": ["gate-abstain", "gate-request", "gate-scope"],
        "task_type": None,
        "base_model_name_or_path": "org/base",
        "revision": None,
        "inference_mode": True,
        "target_modules": ["a.q", "a.v"],
        "members": [{"name": name, "rank": 4, "scaling": 1.0, "overrides": {}} for name in ("one", "two")],
        "rank_alignment": 8,
        "top_k": 1,
        "temperature": 1.0,
        "gate": gate | changes.pop("gate", {}),
    }
    return BundleConfig.read(json.dumps(value | changes).encode())


def test_request_gates_add_their_tensors_to_their_modules_alone() -> None:
    config = config_of(REQUEST)
    assert config.request_classes("a.q") == 3
    assert config.request_classes("a.v") == 0
    added = {name for name in config.tensor_names if "request" in name}
    assert added == {
        f"base_model.model.a.q.meteora_{name}"
        for name in ("request_gate", "request_gate_bias", "request_gram")
    }
    assert BundleConfig.read(config.to_bytes()) == config


FEATURES = ["gate-abstain", "gate-observed", "gate-request", "gate-scope"]


def test_request_gates_may_be_at_modules_that_no_member_touches() -> None:
    request = REQUEST | {"modules": ["b.z", "a.q", "b.k"], "observed": {"b.k": 8, "b.z": 4}}
    config = config_of(request, required_features=FEATURES)
    assert (config.target_modules, config.module_paths) == (("a.q", "a.v"), ("a.q", "a.v", "b.z", "b.k"))
    specs = config.all_tensors({"a.q": (2, 2), "a.v": (2, 2)}, Dtype.BF16)
    assert [(spec.name, spec.shape, spec.dtype) for spec in specs][-3:] == [
        ("base_model.model.b.k.meteora_request_gate", (3, 8), Dtype.F32),
        ("base_model.model.b.k.meteora_request_gate_bias", (3,), Dtype.F32),
        ("base_model.model.b.k.meteora_request_gram", (2, 2), Dtype.F32),
    ]
    assert [config.has_gate(path) for path in config.module_paths] == [True, True, False, False]
    assert BundleConfig.read(config.to_bytes()) == config


def test_a_config_without_observed_modules_keeps_its_bytes() -> None:
    assert b"observed" not in config_of(REQUEST).to_bytes()


OBSERVED = {"modules": ["a.q", "b.k"], "observed": {"b.k": 8}}


@pytest.mark.parametrize(
    ("request_changes", "changes", "problem"),
    [
        (OBSERVED, {}, "the gate needs `gate-observed` in `required_features`, which lacks it"),
        (OBSERVED | {"modules": ["a.q"]}, {}, "`observed` names `b.k`, which is not among the modules"),
        (OBSERVED | {"observed": {}}, {}, "gate.request.observed: "),
        (OBSERVED | {"observed": {"b.k": 0}}, {}, "gate.request.observed.b.k: "),
        (
            {"observed": {"a.q": 8}},
            {"required_features": FEATURES},
            "`gate.request.observed` names `a.q`, which is a target module",
        ),
        ({"modules": ["a.z"]}, {}, "`gate.request` names `a.z`, which is not a target module"),
        ({"modules": ["a.q", "a.q"]}, {}, "a module is named twice"),
        ({"modules": []}, {}, "gate.request.modules: "),
        ({"background": []}, {}, "gate.request.background: "),
        ({"spread": 0.0}, {}, "gate.request.spread: input should be greater than 0"),
        ({"quantiles": [1.0, 0.5] + [2.0] * (QUANTILES - 2)}, {}, "the quantiles of the score must not fall"),
        ({"quantiles": [1.0]}, {}, "gate.request.quantiles: "),
        ({"quantiles": None}, {}, "`abstain` needs the quantiles of the request gates' score, found none"),
        (
            {},
            {"gate": {"scope": "segment"}},
            "`request` goes with a scope that decides for requests, found `segment`",
        ),
        (
            {},
            {"required_features": ["gate-abstain", "gate-scope"]},
            "the gate needs `gate-request` in `required_features`, which lacks it",
        ),
    ],
    ids=[
        "observed-undeclared",
        "observed-not-a-module",
        "observed-none",
        "observed-without-features",
        "observed-target",
        "foreign-module",
        "module-twice",
        "no-module",
        "no-background",
        "no-spread",
        "falling",
        "few-quantiles",
        "no-quantiles",
        "scope",
        "feature",
    ],
)
def test_request_gates_that_make_no_sense_are_refused(
    request_changes: dict[str, Any], changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidDocument) as caught:
        config_of(REQUEST | request_changes, **changes)
    assert problem in str(caught.value)


def test_quantiles_may_be_unknown_where_nothing_is_left_to_the_base() -> None:
    features = ["gate-request", "gate-scope"]
    config = config_of(REQUEST | {"quantiles": None}, gate={"abstain": None}, required_features=features)
    assert config.gate.request is not None
    assert config.gate.request.quantiles is None
