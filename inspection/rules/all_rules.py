"""All rules, by code: the one place that imports every module of rules."""

from __future__ import annotations

from ...schemas.errors import UsageError
from . import (
    base,
    base_name,
    companions,
    files,
    header,
    lock,
    method,
    policy,
    scaling,
    targets,
    tensors,
    vllm,
    weights,
)
from .rule import Rule, registered_rules

MODULES = (
    files,
    method,
    scaling,
    targets,
    base_name,
    header,
    tensors,
    weights,
    base,
    companions,
    policy,
    lock,
    vllm,
)


def all_rules() -> tuple[Rule, ...]:
    """Return every rule, by code."""
    return registered_rules()


def find_rule(code: str) -> Rule:
    """Return the rule of a code, in capitals or not.

    Raises:
        UsageError: there is none.
    """
    for rule in registered_rules():
        if rule.code == code.upper():
            return rule
    raise UsageError(
        f"there is no rule `{code[:40]}`", hint="`validate --explain all` lists the rules with their codes"
    )
