"""From a catalogued adapter version to a member that the fuser takes, its bytes checked on the way."""

from __future__ import annotations

from pathlib import Path

from ...fuser.fuse_member import Member, MemberFiles
from ...inspection.adapter import inspect_files
from ...schemas.bundle import CONFIG_FILE, WEIGHTS_FILE
from ...schemas.errors import AdapterRefused, StoreDamaged
from ...schemas.manifest import Manifest
from ..catalog.records import AdapterVersion
from ..store import Store


def open_member(store: Store, version: AdapterVersion, *, name: str | None = None) -> Member:
    """A catalogued adapter version as a member called ``name`` (else as it is catalogued).

    Both files are read whole and compared with the digests in the catalog.

    Raises:
        StoreDamaged: its bytes are missing or changed.
        AdapterRefused: it has no LoRA factors whose ranks and scalings can be worked out.
    """
    if version.rank is None:
        raise AdapterRefused(f"`{version.source}` is {version.verdict}", findings=version.findings)
    config_path, weights_path = (_path_of(store, version, file) for file in (CONFIG_FILE, WEIGHTS_FILE))
    inspection = inspect_files(config_path, weights_path)
    for path, found, expected in (
        (config_path, inspection.config_sha256, version.config_sha256),
        (weights_path, inspection.weights_sha256, version.weights_sha256),
    ):
        if found != expected:
            raise StoreDamaged(
                f"the blob `{path}` was changed: its bytes have the digest `{found}`",
                hint=f"add `{version.name}` again from its source, which mends it",
            )
    return Member.of(
        inspection,
        name=name or version.name,
        adapter=str(version.source),
        config_path=config_path,
        weights_path=weights_path,
        origin=version.origin,
        license=version.license,
        # What this catalog calls the base, whichever way the adapter spells it.
        base=version.base_model or version.base,
        spelled_base=version.base,
    )


def stored_sources(store: Store, manifest: Manifest) -> dict[str, MemberFiles]:
    """The own files of those members of a bundle whose bytes this store has, by member name."""
    found = {}
    for member in manifest.members:
        config_path = store.find(member.config_sha256)
        weights_path = store.find(member.weights_sha256) if config_path else None
        if config_path and weights_path:
            found[member.name] = MemberFiles(config_path, weights_path)
    return found


def _path_of(store: Store, version: AdapterVersion, name: str) -> Path:
    return store.path_of(version.file(name).sha256)
