"""The result of inspecting one adapter: of any adapter, of a sound one, and of one with LoRA factors."""

from __future__ import annotations

from dataclasses import dataclass

from ..schemas.digest import Digest
from ..schemas.errors import AdapterRefused
from ..schemas.facts import AdapterFacts
from ..schemas.finding import Finding, Verdict
from ..schemas.inventory import Inventory
from .header import Header


@dataclass(frozen=True, slots=True)
class Inspection:
    """The findings and readings of an adapter, which may be broken in any way.

    Texts from the config are escaped, fit for a terminal or a page.

    Attributes:
        config_text: the config as it is written; None if it is missing, too large or not UTF-8.
        canonical_config_sha256: the digest of the config's values; None if they cannot be read.
        header: the header of the weights; None if it cannot be read.
        weights_sha256: the digest of the weights; None unless all of them were read.
        declared_base: the base model that the config names.
        license: as the card beside the adapter states it.
        inventory: the modules with their ranks and scalings; None unless every module's arithmetic is known.
        facts: what the catalog keeps; None unless the config and all of the weights were read.
        findings: everything that is wrong, and notes.
    """

    config_text: str | None = None
    canonical_config_sha256: Digest | None = None
    header: Header | None = None
    weights_sha256: Digest | None = None
    declared_base: str | None = None
    license: str | None = None
    inventory: Inventory | None = None
    facts: AdapterFacts | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The verdict that follows from the findings."""
        return Verdict.of(self.findings)

    def refuse_broken(self, message: str) -> None:
        """Raise an error with this message if nothing can be done with the adapter.

        One that only loaders go wrong with passes: it can be fused.

        Raises:
            AdapterRefused: it is broken; the error has the findings.
        """
        if not self.verdict.sound and not Verdict.of(self.findings, trust_tensors=True).fusable:
            raise AdapterRefused(message, findings=self.findings)

    def require_sound(self, message: str) -> SoundInspection:
        """Return the inspection of an adapter that can be used or fused, every part of which was read.

        Args:
            message: the error's text, such as "`folder` is broken and was not added".

        Raises:
            AdapterRefused: the adapter is broken, or only a part of its files was inspected.
        """
        self.refuse_broken(message)
        if self.config_text is None or self.header is None or self.facts is None:
            raise AdapterRefused(message, findings=self.findings)
        return SoundInspection(self.config_text, self.header, self.facts, self.inventory, self.findings)


@dataclass(frozen=True, slots=True)
class SoundInspection:
    """The readings of a sound adapter, both files of which were read whole.

    Attributes:
        config_text: the config as it is written.
        header: the header of the weights.
        facts: what the catalog keeps.
        inventory: the modules with their ranks and scalings; None for an adapter that is not fusable, such as
            one of another method, which has no LoRA factors.
        findings: notes, warnings, and why it is not fusable.
    """

    config_text: str
    header: Header
    facts: AdapterFacts
    inventory: Inventory | None
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """The verdict that follows from the findings."""
        return Verdict.of(self.findings)

    def require_factors(self, message: str) -> LoraInspection:
        """Return the inspection of an adapter whose modules, ranks and scalings are known.

        Raises:
            AdapterRefused: they are not known; the error has this message and the findings.
        """
        if self.inventory is None:
            raise AdapterRefused(message, findings=self.findings)
        return LoraInspection(self.config_text, self.header, self.facts, self.inventory, self.findings)


@dataclass(frozen=True, slots=True)
class LoraInspection(SoundInspection):
    """The readings of a sound adapter with LoRA factors: its inventory is never None."""

    inventory: Inventory
