"""Comparisons of an inspected adapter: with its base, with others to be fused with it, with a policy."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import combinations
from pathlib import Path
from typing import Protocol

from ..schemas.bundle import CONFIG_FILE
from ..schemas.document import load_json
from ..schemas.errors import InvalidDocument
from ..schemas.finding import Finding
from ..schemas.policy import Policy
from ..schemas.trained_on import TrainedOn
from .base_facts import BaseComparison, BaseFacts, base_path
from .companions import Companions
from .config import LoraConfig
from .deep import measure_cosine, measure_ranks
from .header import Header
from .inspection import Inspection
from .policy import PolicyCase, apply_severities
from .rules import all_rules as _all_rules  # noqa: F401 - registers every rule
from .rules.rule import codes_that_see_the_base, examine, order
from .tensors import Tensors
from .vllm import EngineCase, EngineLimits


class Described(Protocol):
    """An adapter by the two texts that describe it, as far as they could be read."""

    @property
    def header(self) -> Header | None:
        """The header of the weights."""

    @property
    def config_text(self) -> str | None:
        """The config as it is written."""


def compare_with_base(
    adapter: Described, findings: tuple[Finding, ...], facts: BaseFacts
) -> tuple[Finding, ...]:
    """Return the findings about an adapter and those of comparing it with its base.

    Rules that know more with the base judge anew, and what they found without it is left out.
    """
    found = _sort(adapter, facts)
    if found is None:
        return findings
    anew = codes_that_see_the_base()
    kept = tuple(finding for finding in findings if finding.code not in anew)
    return order(kept + examine(found, with_base=True) + examine(BaseComparison(found, facts)))


def module_paths(adapter: Described) -> list[str]:
    """Return the module paths of an adapter, sound or not, to be looked up in a base."""
    found = _sort(adapter)
    return [base_path(pair, found) for pair in found.pairs] if found else []


def trained_on(adapter: Described) -> TrainedOn:
    """Return the model that an adapter was trained on, as far as its config names it."""
    config = _config_of(adapter)
    return config.trained_on if config else TrainedOn()


def _sort(adapter: Described, facts: BaseFacts | None = None) -> Tensors | None:
    """Return the tensors of a LoRA adapter; None of anything else, and where a file cannot be read."""
    config = _config_of(adapter)
    if adapter.header is None or config is None or not config.is_lora:
        return None
    return Tensors.sort(adapter.header, config, facts)


def _config_of(adapter: Described) -> LoraConfig | None:
    """Return the config of an adapter; None if it is not a JSON object."""
    if adapter.config_text is None:
        return None
    try:
        value = load_json(adapter.config_text.encode("utf-8"), what=CONFIG_FILE)
    except InvalidDocument:
        return None
    return LoraConfig(value, has_tensors=True) if isinstance(value, dict) else None


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
    trust_tensors: bool = False,
    headless: Collection[str] | None = None,
) -> tuple[Finding, ...]:
    """Return the findings that keep adapters from being fused together.

    ``bases`` has the base of each where it is not the declared one, and ``stated_base`` overrides both.
    With ``weights``, the files by name, the deltas of all pairs of fusable members are compared too.
    ``headless`` names those trained on a model without an output layer; left out, their configs are read.
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
    known = declared | dict(bases or {})
    if headless is None:
        headless = [name for name, each in members.items() if trained_on(each).lacks_head]
    return examine(
        Companions(
            members, known, stated_base, alike, trust_tensors=trust_tensors, headless=frozenset(headless)
        )
    )


def judge_for_engine(adapter: Described, limits: EngineLimits) -> tuple[Finding, ...]:
    """Return the findings about an adapter in a vLLM engine; none unless it is a LoRA adapter."""
    config = _config_of(adapter)
    if config is None or not config.is_lora:
        return ()
    return examine(EngineCase(config, adapter.header, limits))


def apply_policy(
    inspection: Inspection, findings: tuple[Finding, ...], policy: Policy, *, base: str | None = None
) -> tuple[Finding, ...]:
    """Return the findings with the severities of a policy, and those of the policy itself."""
    case = PolicyCase(policy, inspection, base or inspection.declared_base)
    return order(apply_severities(findings + examine(case), policy))
