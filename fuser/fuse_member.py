"""An adapter as a member of a fuse: its two files and the facts that an inspection found in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..bundle.member import QuotedMember, modules_by_path
from ..inspection.header import Header
from ..inspection.inspection import LoraInspection
from ..schemas.bundle import CONFIG_FILE, WEIGHTS_FILE
from ..schemas.digest import Digest
from ..schemas.document import canonical_json, load_json
from ..schemas.finding import Finding, Verdict
from ..schemas.inventory import Inventory, ModuleFactors
from ..schemas.manifest import Origin
from ..schemas.trained_on import TrainedOn, transformers_mapping


@dataclass(frozen=True, slots=True)
class Member:
    """One adapter and the facts that a fuse needs.

    ``name`` is its name in the bundle, ``adapter`` its name in the catalog, such as ``legal@3``.
    ``config_path`` and ``weights_path`` may have any name: the content store keeps files by their digests.
    ``base`` is what the base is called where members are compared, ``spelled_base`` what the owner or the
    adapter itself calls it. ``auto_mapping`` is the class of transformers that it was trained on, where its
    config names one and no task; ``trained_on`` the class or the task, as far as it names either.
    """

    name: str
    adapter: str
    config_path: Path
    weights_path: Path
    config_text: str
    config_sha256: Digest
    canonical_config_sha256: Digest
    weights_sha256: Digest
    header: Header
    inventory: Inventory
    findings: tuple[Finding, ...]
    origin: Origin
    license: str | None
    base: str | None
    spelled_base: str | None
    base_revision: str | None
    task_type: str | None
    auto_mapping: dict[str, str] | None
    trained_on: TrainedOn

    @property
    def verdict(self) -> Verdict:
        """The verdict that follows from its findings."""
        return Verdict.of(self.findings)

    @classmethod
    def of(
        cls,
        inspection: LoraInspection,
        *,
        name: str,
        adapter: str,
        config_path: Path,
        weights_path: Path,
        origin: Origin,
        license: str | None,  # noqa: A002  # the field's name everywhere
        base: str | None,
        spelled_base: str | None,
    ) -> Self:
        """Return the member that an inspection of its two files describes."""
        facts = inspection.facts
        mapping = load_json(inspection.config_text.encode("utf-8"), what=CONFIG_FILE).get("auto_mapping")
        return cls(
            name=name,
            adapter=adapter,
            config_path=config_path,
            weights_path=weights_path,
            config_text=inspection.config_text,
            config_sha256=facts.config_sha256,
            canonical_config_sha256=facts.canonical_config_sha256,
            weights_sha256=facts.weights_sha256,
            header=inspection.header,
            inventory=inspection.inventory,
            findings=inspection.findings,
            origin=origin,
            license=license,
            base=base,
            spelled_base=spelled_base,
            base_revision=facts.base_revision,
            task_type=facts.task_type,
            auto_mapping=None if facts.task_type else transformers_mapping(mapping),
            trained_on=TrainedOn.read(facts.task_type, mapping),
        )

    @classmethod
    def quoted(cls, member: QuotedMember) -> Self:
        """Return a member of a bundle as its manifest quotes it, without files of its own.

        Its modules have the bundle's names for them. Nothing is found of it: it was inspected when it came.

        Raises:
            MeteoraError: its config or its header cannot be read.
        """
        entry, inventory = member.entry, member.inventory
        config, mapping = member.config, member.config.value.get("auto_mapping")
        task_type = config.text("task_type")
        present = [
            module.model_copy(update={"path": path}) for path, module in sorted(member.modules.items())
        ]
        return cls(
            name=entry.name,
            adapter=entry.name,
            config_path=Path(CONFIG_FILE),
            weights_path=Path(WEIGHTS_FILE),
            config_text=entry.config_text,
            config_sha256=entry.config_sha256,
            canonical_config_sha256=Digest.of_bytes(canonical_json(config.value)),
            weights_sha256=entry.weights_sha256,
            header=member.header,
            inventory=inventory.model_copy(update={"modules": tuple(present)}),
            findings=(),
            origin=entry.origin,
            license=entry.license,
            base=entry.base,
            spelled_base=entry.base,
            base_revision=config.text("revision"),
            task_type=task_type,
            auto_mapping=None if task_type else transformers_mapping(mapping),
            trained_on=TrainedOn.read(task_type, mapping),
        )

    def modules(self, renamed: Mapping[str, str]) -> dict[str, ModuleFactors]:
        """Return the modules by what a bundle calls them; ``renamed`` has the new names of old paths."""
        return modules_by_path(self.inventory, renamed)


@dataclass(frozen=True, slots=True)
class MemberFiles:
    """The paths of a member's own two files; their digests are checked before they are trusted.

    ``came_from`` names the bundle that they were taken out of: they are not witnesses of it. ``origin`` is
    where they were fetched just now, if the manifest names it: other files there are a problem.
    """

    config_path: Path
    weights_path: Path
    came_from: str | None = None
    origin: str | None = None
