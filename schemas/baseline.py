"""A baseline: the findings that a team knows of and lives with."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints

from .document import Document
from .finding import RULE_CODE_PATTERN, Finding
from .names import LocalPath

MAX_BASELINE_BYTES = 64 << 20
_MAX_VALUES = 2_000_000


class KnownFinding(Document):
    """One finding by its rule, its place and what was found there; another value there is another finding."""

    code: Annotated[str, StringConstraints(pattern=RULE_CODE_PATTERN)]
    file: str | None = None
    tensor: str | None = None
    field: str | None = None
    found: str

    @classmethod
    def of(cls, finding: Finding) -> Self:
        """Return what a baseline keeps of a finding."""
        place = finding.place
        return cls(
            code=finding.code, file=place.file, tensor=place.tensor, field=place.field, found=finding.found
        )


class Baseline(Document):
    """Known findings by the adapters' paths below the baseline's own folder; ``.`` is that folder itself.

    ``together`` has those against fusing the adapters with each other or with others.
    """

    meteora_baseline: Literal[1]
    adapters: dict[LocalPath, tuple[KnownFinding, ...]] = Field(default_factory=dict)
    together: tuple[KnownFinding, ...] = ()

    @classmethod
    def read(cls, data: bytes, *, what: str) -> Self:
        """Read a baseline.

        Raises:
            InvalidDocument: it is too large, not JSON, or not a baseline.
        """
        return cls.from_bytes(data, what=what, max_bytes=MAX_BASELINE_BYTES, max_values=_MAX_VALUES)
