"""Catalogue LoRA adapters, fuse them into one verified MeteoRA bundle, fit its gates, and run it.

The public names are those of ``__all__``; docs/api.md describes them. A module of this package that is not
named here is internal and may change.

    import meteora_registry as meteora

    with meteora.Registry() as registry:
        registry.add("adapters/legal")
    loaded = meteora.load("bundle", "org/base-model")
    print(loaded.generate("text"))

Importing this package loads nothing else: a name is imported when it is first used, so that a catalog
needs no torch, and a machine with only torch and triton can import ``meteora_registry.kernels``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import Bundle
    from .bundle.signers import Signers
    from .registry.catalog.query import AdapterQuery, Order, Page
    from .registry.catalog.records import (
        AdapterSummary,
        AdapterVersion,
        BundleVersion,
        MeasuredEvaluation,
        Removal,
        Restored,
        TrashedVersion,
    )
    from .registry.face import Registry
    from .registry.fused import FusedBundle, fuse
    from .registry.workflows.additions import Addition
    from .registry.workflows.examination import Examination
    from .registry.workflows.fusion import Fusion
    from .registry.workflows.gate_adoption import GateAdoption
    from .registry.workflows.gate_fit import GateFit
    from .registry.workflows.hub_bundles import Pulled
    from .registry.workflows.member_change import ChangedBundle
    from .registry.workflows.problem import Mending, Problem
    from .registry.workflows.publication import Pushed
    from .registry.workflows.store_upkeep import Removed
    from .runtime import (
        Answer,
        AnswerStream,
        Decision,
        GateNotFittedWarning,
        LoadedBundle,
        RoutingRecord,
        force_adapter,
        force_tokens,
        route_as,
        routing,
        uniform,
    )
    from .runtime import load_bundle as load
    from .runtime.evaluation import EvaluationOptions
    from .runtime.training import TrainingOptions, TrainingOutcome
    from .schemas.difference import AdapterDifference, BundleDifference
    from .schemas.errors import (
        AdapterRefused,
        AlreadyInCatalog,
        BundleRefused,
        CatalogUnusable,
        DataRefused,
        FuseRefused,
        HubConflict,
        HubMismatch,
        HubNotFound,
        HubRefused,
        HubUnavailable,
        InvalidDocument,
        MeteoraError,
        MissingDependency,
        NotInCatalog,
        SourceUnreadable,
        StillInUse,
        StoreDamaged,
        StoreUnavailable,
        UsageError,
    )
    from .schemas.evaluation import Evaluation, EvaluationSummary
    from .schemas.finding import Finding, Severity, Verdict
    from .schemas.names import CatalogSource
    from .schemas.plan import FusePlan
    from .schemas.recipe import Recipe, RecipeMember, RecipeOptions
    from .schemas.signers import SignedBy, SigningKey
    from .schemas.verification import Level, Outcome, VerificationRecord

__version__ = "0.1.0"

# The module of each public name; the name is imported from there when it is first used.
_MODULES = {
    "AdapterDifference": "schemas.difference",
    "AdapterQuery": "registry.catalog.query",
    "AdapterRefused": "schemas.errors",
    "AdapterSummary": "registry.catalog.records",
    "AdapterVersion": "registry.catalog.records",
    "Addition": "registry.workflows.additions",
    "AlreadyInCatalog": "schemas.errors",
    "Answer": "runtime",
    "AnswerStream": "runtime",
    "Bundle": "bundle",
    "BundleDifference": "schemas.difference",
    "BundleRefused": "schemas.errors",
    "BundleVersion": "registry.catalog.records",
    "CatalogSource": "schemas.names",
    "CatalogUnusable": "schemas.errors",
    "ChangedBundle": "registry.workflows.member_change",
    "DataRefused": "schemas.errors",
    "Decision": "runtime",
    "Evaluation": "schemas.evaluation",
    "EvaluationOptions": "runtime.evaluation",
    "EvaluationSummary": "schemas.evaluation",
    "Examination": "registry.workflows.examination",
    "Finding": "schemas.finding",
    "FusePlan": "schemas.plan",
    "FuseRefused": "schemas.errors",
    "FusedBundle": "registry.fused",
    "Fusion": "registry.workflows.fusion",
    "GateAdoption": "registry.workflows.gate_adoption",
    "GateFit": "registry.workflows.gate_fit",
    "GateNotFittedWarning": "runtime",
    "HubConflict": "schemas.errors",
    "HubMismatch": "schemas.errors",
    "HubNotFound": "schemas.errors",
    "HubRefused": "schemas.errors",
    "HubUnavailable": "schemas.errors",
    "InvalidDocument": "schemas.errors",
    "Level": "schemas.verification",
    "LoadedBundle": "runtime",
    "MeasuredEvaluation": "registry.catalog.records",
    "Mending": "registry.workflows.problem",
    "MeteoraError": "schemas.errors",
    "MissingDependency": "schemas.errors",
    "NotInCatalog": "schemas.errors",
    "Order": "registry.catalog.query",
    "Outcome": "schemas.verification",
    "Page": "registry.catalog.query",
    "Problem": "registry.workflows.problem",
    "Pulled": "registry.workflows.hub_bundles",
    "Pushed": "registry.workflows.publication",
    "Recipe": "schemas.recipe",
    "RecipeMember": "schemas.recipe",
    "RecipeOptions": "schemas.recipe",
    "Registry": "registry.face",
    "Removal": "registry.catalog.records",
    "Removed": "registry.workflows.store_upkeep",
    "Restored": "registry.catalog.records",
    "RoutingRecord": "runtime",
    "Severity": "schemas.finding",
    "SignedBy": "schemas.signers",
    "Signers": "bundle.signers",
    "SigningKey": "schemas.signers",
    "SourceUnreadable": "schemas.errors",
    "StillInUse": "schemas.errors",
    "StoreDamaged": "schemas.errors",
    "StoreUnavailable": "schemas.errors",
    "TrainingOptions": "runtime.training",
    "TrainingOutcome": "runtime.training",
    "TrashedVersion": "registry.catalog.records",
    "UsageError": "schemas.errors",
    "Verdict": "schemas.finding",
    "VerificationRecord": "schemas.verification",
    "force_adapter": "runtime",
    "force_tokens": "runtime",
    "fuse": "registry.fused",
    "load": "runtime",
    "route_as": "runtime",
    "routing": "runtime",
    "uniform": "runtime",
}
# Public names that differ from the name in their module.
_ALIASES = {"load": "load_bundle"}

__all__ = [
    "AdapterDifference",
    "AdapterQuery",
    "AdapterRefused",
    "AdapterSummary",
    "AdapterVersion",
    "Addition",
    "AlreadyInCatalog",
    "Answer",
    "AnswerStream",
    "Bundle",
    "BundleDifference",
    "BundleRefused",
    "BundleVersion",
    "CatalogSource",
    "CatalogUnusable",
    "ChangedBundle",
    "DataRefused",
    "Decision",
    "Evaluation",
    "EvaluationOptions",
    "EvaluationSummary",
    "Examination",
    "Finding",
    "FusePlan",
    "FuseRefused",
    "FusedBundle",
    "Fusion",
    "GateAdoption",
    "GateFit",
    "GateNotFittedWarning",
    "HubConflict",
    "HubMismatch",
    "HubNotFound",
    "HubRefused",
    "HubUnavailable",
    "InvalidDocument",
    "Level",
    "LoadedBundle",
    "MeasuredEvaluation",
    "Mending",
    "MeteoraError",
    "MissingDependency",
    "NotInCatalog",
    "Order",
    "Outcome",
    "Page",
    "Problem",
    "Pulled",
    "Pushed",
    "Recipe",
    "RecipeMember",
    "RecipeOptions",
    "Registry",
    "Removal",
    "Removed",
    "Restored",
    "RoutingRecord",
    "Severity",
    "SignedBy",
    "Signers",
    "SigningKey",
    "SourceUnreadable",
    "StillInUse",
    "StoreDamaged",
    "StoreUnavailable",
    "TrainingOptions",
    "TrainingOutcome",
    "TrashedVersion",
    "UsageError",
    "Verdict",
    "VerificationRecord",
    "force_adapter",
    "force_tokens",
    "fuse",
    "load",
    "route_as",
    "routing",
    "uniform",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    try:
        module = import_module(f".{_MODULES[name]}", __name__)
    except ModuleNotFoundError as error:
        from .schemas.errors import MissingDependency

        raise MissingDependency(
            f"`{name}` needs `{error.name}`, which is not installed",
            extra="runtime",
        ) from error
    found = getattr(module, _ALIASES.get(name, name))
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
