"""Comparisons of an inspected adapter: with its base, with others to be fused with it, with a policy."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from ..schemas.document import load_json
from ..schemas.finding import Finding
from ..schemas.policy import Policy
from .base_facts import BaseComparison, BaseFacts
from .companions import Companions
from .config import LoraConfig
from .deep import measure_cosine, measure_ranks
from .inspection import Inspection
from .policy import PolicyCase, apply_severities
from .rules import catalogue as _catalogue  # noqa: F401 - registers every rule
from .rules.rule import examine, order
from .tensors import Tensors


def compare_with_base(inspection: Inspection, facts: BaseFacts) -> tuple[Finding, ...]:
    """Return the findings of comparing a LoRA adapter with its base."""
    if inspection.header is None or inspection.config_text is None:
        return ()
    config = LoraConfig(load_json(inspection.config_text.encode("utf-8"), what="adapter_config.json"))
    if not config.is_lora:
        return ()
    return examine(BaseComparison(Tensors.sort(inspection.header, config), facts))


def module_paths(inspection: Inspection) -> list[str]:
    """Return the module paths of an adapter, sound or not, to be looked up in a base."""
    if inspection.header is None:
        return []
    return [pair.path for pair in Tensors.sort(inspection.header, LoraConfig({})).pairs]


def look_deeper(inspection: Inspection, weights: Path) -> tuple[Finding, ...]:
    """Return the findings about the effective ranks; none for an adapter that is not fusable."""
    if inspection.header is None or inspection.inventory is None or not inspection.verdict.fusable:
        return ()
    return examine(measure_ranks(weights, inspection.header, inspection.inventory))


def compare_companions(
    members: Mapping[str, Inspection],
    *,
    bases: Mapping[str, str | None] | None = None,
    stated_base: str | None = None,
    weights: Mapping[str, Path] | None = None,
) -> tuple[Finding, ...]:
    """Return the findings that keep adapters from being fused together.

    ``bases`` has the base of each where it is not the declared one, and ``stated_base`` overrides both.
    With ``weights``, the files by name, the deltas of all pairs of fusable members are compared too.
    """
    alike = {}
    sources = {
        name: (path, inspection.header, inspection.inventory)
        for name, path in (weights or {}).items()
        if (inspection := members[name]).verdict.fusable and inspection.header and inspection.inventory
    }
    for one, other in combinations(sources, 2):
        cosine = measure_cosine(sources[one], sources[other])
        if cosine is not None:
            alike[one, other] = cosine
    declared = {name: inspection.declared_base for name, inspection in members.items()}
    return examine(Companions(members, declared | dict(bases or {}), stated_base, alike))


def apply_policy(
    inspection: Inspection, findings: tuple[Finding, ...], policy: Policy, *, base: str | None = None
) -> tuple[Finding, ...]:
    """Return the findings with the severities of a policy, and those of the policy itself."""
    case = PolicyCase(policy, inspection, base or inspection.declared_base)
    return order(apply_severities(findings + examine(case), policy))
