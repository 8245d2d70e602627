"""A policy: the TOML file in which a team states which adapters it accepts.

It can only be stricter than the rules: a rule that protects a result cannot be switched off, and only the
severity of what is a matter of taste can be changed.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from .document import PositiveCount
from .finding import RULE_CODE_PATTERN
from .inventory import Dtype
from .toml import TomlDocument

RuleCode = Annotated[str, StringConstraints(pattern=RULE_CODE_PATTERN)]
Setting = Literal["off", "note", "warn", "refuse"]
Names = Annotated[tuple[str, ...], Field(max_length=10_000)]


class Policy(TomlDocument):
    """The adapters that a team accepts; a field that is not stated restricts nothing.

    ``allowed_bases`` are names, or an organisation as ``org/*``; ``allowed_targets`` the last parts
    of module paths, such as ``q_proj``.
    """

    example: ClassVar[str] = (
        "a policy has `meteora_policy = 1`, and conditions such as `max_rank = 64`: docs/formats/policy.md"
    )

    meteora_policy: Literal[1]
    allowed_bases: Names | None = None
    allowed_licenses: Names | None = None
    allowed_targets: Names | None = None
    allowed_dtypes: tuple[Dtype, ...] | None = None
    max_rank: PositiveCount | None = None
    max_weights_bytes: PositiveCount | None = None
    severity: dict[RuleCode, Setting] = Field(default_factory=dict)
