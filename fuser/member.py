"""One adapter on its way into a bundle: its two files, and what an inspection found in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..inspection.header import Header
from ..schemas.digest import Digest
from ..schemas.finding import Finding, Verdict
from ..schemas.inventory import Inventory
from ..schemas.manifest import Origin


@dataclass(frozen=True, slots=True)
class Member:
    """What the fuser needs of one adapter.

    ``name`` is what the bundle will call it, ``adapter`` what people know it by (such as
    ``legal@3``). ``config_path`` and ``weights_path`` may have any name: the content store keeps
    files by their digests. ``base`` is the base that the owner stated, else the one declared.
    """

    name: str
    adapter: str
    config_path: Path
    weights_path: Path
    config_text: str
    config_sha256: Digest
    weights_sha256: Digest
    header: Header
    inventory: Inventory
    verdict: Verdict
    findings: tuple[Finding, ...]
    origin: Origin
    license: str | None
    base: str | None
    base_revision: str | None
    task_type: str | None
