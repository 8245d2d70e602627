"""A policy: the TOML file in which a team states which adapters it accepts.

It can only be stricter than the rules: a rule that protects a result cannot be switched off, and only the
severity of what is a matter of taste can be changed.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints

from .document import Document, PositiveCount
from .finding import RULE_CODE_PATTERN
from .inventory import Dtype
from .toml import load_toml

MAX_POLICY_BYTES = 1 << 20
RuleCode = Annotated[str, StringConstraints(pattern=RULE_CODE_PATTERN)]
Setting = Literal["off", "note", "warn", "refuse"]
Names = Annotated[tuple[str, ...], Field(max_length=10_000)]


class Policy(Document):
    """The adapters that a team accepts; a field that is not stated restricts nothing.

    ``allowed_bases`` are names, or an organisation as ``org/*``; ``allowed_targets`` the last parts
    of module paths, such as ``q_proj``.
    """

    # A policy is typed by hand, with no place to learn of a misspelt key but here.
    model_config = ConfigDict(extra="forbid")

    meteora_policy: Literal[1]
    allowed_bases: Names | None = None
    allowed_licenses: Names | None = None
    allowed_targets: Names | None = None
    allowed_dtypes: tuple[Dtype, ...] | None = None
    max_rank: PositiveCount | None = None
    max_weights_bytes: PositiveCount | None = None
    severity: dict[RuleCode, Setting] = Field(default_factory=dict)

    @classmethod
    def from_toml(cls, data: bytes, *, what: str) -> Self:
        """Read a policy.

        Raises:
            InvalidDocument: too large or too deep, not TOML, or a field breaks the schema.
        """
        return cls.from_value(load_toml(data, what=what, max_bytes=MAX_POLICY_BYTES), what=what)
