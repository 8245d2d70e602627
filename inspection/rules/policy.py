"""Rules that a team's policy turns on."""

from __future__ import annotations

from ...schemas.base_name import base_key, present_name
from ...schemas.finding import Effect
from ...schemas.quotation import quote_name, quote_names
from ..policy import PolicyCase
from .rule import CONFIG_FILE, WEIGHTS_FILE, Observation, Observations, rule

_WHY = "the policy given with `--policy` does not allow it"
_REMEDY = "choose another adapter, or have the policy changed"


@rule("MR701", PolicyCase, Effect.POLICY, file=CONFIG_FILE, why=_WHY, remedy=_REMEDY)
def base_is_not_allowed(case: PolicyCase) -> Observations:
    """The policy does not allow this base."""
    allowed = case.policy.allowed_bases
    if allowed is None:
        return
    if not any(case.base and _matches(case.base, pattern) for pattern in allowed):
        found = quote_name(case.base) if case.base else "no base"
        yield Observation(found, quote_names(list(allowed)), field="base_model_name_or_path")


@rule("MR702", PolicyCase, Effect.POLICY, file="README.md", why=_WHY, remedy=_REMEDY)
def license_is_not_allowed(case: PolicyCase) -> Observations:
    """The policy does not allow this licence."""
    allowed = case.policy.allowed_licenses
    found = case.inspection.license
    if allowed is not None and (found is None or found.lower() not in {name.lower() for name in allowed}):
        shown = quote_name(found) if found else "no licence"
        yield Observation(shown, quote_names(list(allowed)), field="license")


@rule("MR703", PolicyCase, Effect.POLICY, file=WEIGHTS_FILE, why=_WHY, remedy=_REMEDY)
def rank_is_too_large(case: PolicyCase) -> Observations:
    """A rank is larger than the policy allows."""
    limit, inventory = case.policy.max_rank, case.inspection.inventory
    if limit is not None and inventory is not None and inventory.max_rank > limit:
        module = max(inventory.modules, key=lambda each: each.rank)
        yield Observation(f"rank {module.rank}", f"at most {limit}", tensor=module.a)


@rule("MR704", PolicyCase, Effect.POLICY, file=WEIGHTS_FILE, why=_WHY, remedy=_REMEDY)
def weights_are_too_large(case: PolicyCase) -> Observations:
    """The weights are larger than the policy allows."""
    limit, header = case.policy.max_weights_bytes, case.inspection.header
    if limit is not None and header is not None and header.file_bytes > limit:
        yield Observation(f"{header.file_bytes} bytes", f"at most {limit} bytes")


@rule("MR705", PolicyCase, Effect.POLICY, file=WEIGHTS_FILE, why=_WHY, remedy=_REMEDY)
def target_is_not_allowed(case: PolicyCase) -> Observations:
    """The adapter changes modules that the policy does not allow."""
    allowed, inventory = case.policy.allowed_targets, case.inspection.inventory
    if allowed is None or inventory is None:
        return
    others = sorted({module.kind for module in inventory.modules} - set(allowed))
    if others:
        yield Observation(quote_names(others), quote_names(list(allowed)))


@rule("MR706", PolicyCase, Effect.POLICY, file=WEIGHTS_FILE, why=_WHY, remedy=_REMEDY)
def dtype_is_not_allowed(case: PolicyCase) -> Observations:
    """The factors are stored in a dtype that the policy does not allow."""
    allowed, inventory = case.policy.allowed_dtypes, case.inspection.inventory
    if allowed is None or inventory is None:
        return
    others = sorted(set(inventory.dtypes) - set(allowed))
    if others:
        yield Observation(" and ".join(others), " or ".join(allowed))


def _matches(name: str, pattern: str) -> bool:
    if not pattern.endswith("/*"):
        return base_key(name) == base_key(pattern)
    organisation = pattern.removesuffix("*").casefold()
    # A policy may name the organisation of before a renaming.
    return any(each.casefold().startswith(organisation) for each in (name, present_name(name)))
