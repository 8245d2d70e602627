"""Adapters and bundles to put into a catalog, without files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from meteora_registry.registry.catalog.records import (
    AdapterVersion,
    NewAdapterVersion,
    NewBundleVersion,
    NewMember,
    StoredFile,
    Target,
)
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.facts import AdapterFacts, BundleFacts
from meteora_registry.schemas.inventory import Dtype, Inventory, ModuleFactors
from meteora_registry.schemas.manifest import Origin
from meteora_registry.schemas.verification import BackendRun, Level, ModuleError, Outcome, VerificationRecord


def some_inventory() -> Inventory:
    """Return two layers of ``q_proj`` that differ in rank, and one ``up_proj``."""
    return Inventory(
        modules=(
            _module("model.layers.0.self_attn.q_proj", rank=4, out_features=32),
            _module("model.layers.1.mlp.up_proj", rank=8, out_features=48),
            _module("model.layers.1.self_attn.q_proj", rank=16, out_features=32),
        ),
        rank=4,
        scaling=2.0,
    )


def _module(path: str, *, rank: int, out_features: int) -> ModuleFactors:
    return ModuleFactors(
        path=path,
        rank=rank,
        in_features=32,
        out_features=out_features,
        alpha=8.0,
        scaling=8.0 / rank,
        a=f"{path}.lora_A.weight",
        b=f"{path}.lora_B.weight",
        a_dtype=Dtype.BF16,
        b_dtype=Dtype.F32,
    )


_FROM_INVENTORY = ("rank", "max_rank", "scaling", "dtypes", "shape_signature")


def new_adapter(name: str = "legal", content: str = "1", **changes: Any) -> NewAdapterVersion:
    """Return an adapter whose digests follow from ``content``; ``changes`` name facts."""
    weights, config = Digest.of_bytes(f"weights {content}".encode()), Digest.of_bytes(b"config")
    inventory: Inventory | None = changes.pop("inventory", some_inventory())
    # A fact that is not named here is None.
    facts: dict[str, Any] = {field.name: None for field in dataclasses.fields(AdapterFacts)} | {
        "weights_sha256": weights,
        "config_sha256": config,
        "canonical_config_sha256": config,
        "weights_bytes": 1000,
        "declared_base": "org/base",
        "base_revision": None,
        "task_type": "CAUSAL_LM",
        "license": "apache-2.0",
        "peft_version": "0.21.2",
        "dtypes": (),
    }
    if inventory:
        facts |= {name: getattr(inventory, name) for name in _FROM_INVENTORY}
    values: dict[str, Any] = {
        "name": name,
        "origin": Origin(kind="folder", location="folder", commit=None),
        "files": (
            StoredFile("adapter_config.json", config, 100),
            StoredFile("adapter_model.safetensors", weights, 1000),
        ),
        "stated_base": None,
        "facts": AdapterFacts(**facts | {key: changes.pop(key) for key in facts.keys() & changes.keys()}),
        "targets": Target.all_of(inventory) if inventory else (),
        "findings": (),
    }
    return NewAdapterVersion(**values | changes)


def new_bundle(
    *members: AdapterVersion, name: str = "team", content: str = "1", **changes: Any
) -> NewBundleVersion:
    """Return a bundle of these members, with a manifest digest that follows from ``content``."""
    facts: dict[str, Any] = {
        "manifest_sha256": Digest.of_bytes(f"manifest {content}".encode()),
        "size_bytes": 5000,
        "base": "org/base",
        "base_revision": None,
        "dtype": "F32",
        "top_k": 2,
        "temperature": 1.0,
        "gate_kind": "linear",
        "gate_scope": "token",
        "gate_fitted": "not fitted",
    }
    values: dict[str, Any] = {
        "name": name,
        "path": Path("/bundles/team"),
        "facts": BundleFacts(**facts | {key: changes.pop(key) for key in facts.keys() & changes.keys()}),
        "members": tuple(
            NewMember(member.name, member, member.weights_sha256, member.config_sha256) for member in members
        ),
    }
    return NewBundleVersion(**values | changes)


def some_verification(
    content: str = "1", outcome: Outcome = Outcome.PASS, level: Level = Level.SOURCE
) -> VerificationRecord:
    """Return a record for the bundle of that content, as a verification writes it."""
    return VerificationRecord(
        meteora_verification=1,
        manifest_sha256=Digest.of_bytes(f"manifest {content}".encode()),
        level=level,
        outcome=outcome,
        problems=("a digest differs",) if outcome is Outcome.FAIL else (),
        unchecked=("a member's files",) if outcome is Outcome.INCONCLUSIVE else (),
        notes=(),
        backends_run=(
            BackendRun(
                backend="cpu",
                device="x86_64",
                compute_dtype="float32",
                modules=1,
                max_error=1e-7,
                tolerance=1e-5,
            ),
        ),
        backends_not_run=(),
        modules={"model.layers.0.self_attn.q_proj": ModuleError(routed=1e-7, forced=1e-7)},
        versions={},
        created_at="2026-01-01T00:00:00Z",
    )
