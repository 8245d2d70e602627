"""The result of inspecting one adapter."""

from __future__ import annotations

from dataclasses import dataclass

from ..schemas.digest import Digest
from ..schemas.finding import Finding, Verdict
from ..schemas.inventory import Inventory
from .header import Header


@dataclass(frozen=True, slots=True)
class Inspection:
    """What an inspection found.

    Texts from the config are escaped, fit for a terminal or a page. ``config_text`` and the digests
    are of the files as they are; ``inventory`` is there only if every module's arithmetic is known.
    """

    config_text: str | None = None
    config_sha256: Digest | None = None
    canonical_config_sha256: Digest | None = None
    weights_sha256: Digest | None = None
    weights_bytes: int | None = None
    header: Header | None = None
    declared_base: str | None = None
    base_revision: str | None = None
    task_type: str | None = None
    license: str | None = None
    peft_version: str | None = None
    target_modules: str | tuple[str, ...] | None = None
    inventory: Inventory | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """What the findings come to."""
        return Verdict.of(self.findings)
