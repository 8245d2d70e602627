"""Catalogued adapters for an engine that serves them: looked up, checked, and placed in a folder of the home.

A folder is named after the digests of its files, so a label that moves leads to another folder, and the
engines of one machine share one. An engine reads it again whenever it has forgotten the adapter, so nothing
here deletes one that is whole.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from ...files.digests import hash_file
from ...files.locks import hold_lock
from ...inspection.adapter import inspect_adapter
from ...inspection.comparison import judge_for_engine
from ...inspection.vllm import ALLOWED_RANKS, EngineLimits
from ...schemas.base_name import base_key, is_hub_id
from ...schemas.digest import Digest
from ...schemas.errors import AdapterRefused, SourceUnreadable, StoreDamaged
from ...schemas.finding import Effect, Finding
from ...schemas.names import CatalogSource, below, check_file_name
from ..catalog.records import AdapterVersion
from ..workspace import Workspace
from .adapter_copy import copy_adapter
from .companion_sources import base_names

ENGINE_FOLDER = "vllm"
BASE_VARIABLE = "METEORA_BASE"


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """An adapter's version and the folder that an engine loads it from."""

    version: CatalogSource
    files_digest: Digest
    folder: Path


def serve_adapter(workspace: Workspace, source: CatalogSource, base: str) -> ServedAdapter:
    """Return a catalogued adapter in a folder whose files have the digests of the catalog.

    Args:
        workspace: the catalog and the store.
        source: the adapter.
        base: the base that the engine serves, by its name or as the path that it was started with.

    Raises:
        NotInCatalog: there is no such adapter.
        AdapterRefused: it is of another base, is broken, or the engine would refuse it or leave a part out.
        StoreDamaged, StoreUnavailable: its bytes cannot be had, or are not those that were added.
        CatalogUnusable, SourceUnreadable: the catalog or the folder cannot be used.
    """
    version = workspace.catalog.find(source)
    if not version.verdict.sound:
        raise AdapterRefused(
            f"`{version.source}` is broken for use by itself", findings=version.findings, hint="fuse it"
        )
    _require_base(workspace, version, base)
    digest = _digest_of(version)
    folder = workspace.home.folder / ENGINE_FOLDER / digest
    with hold_lock(folder.with_name(f"{digest}.lock")):
        _place(workspace, version, folder)
    _require_served(version, folder)
    return ServedAdapter(version.source, digest, folder)


def _require_base(workspace: Workspace, version: AdapterVersion, base: str) -> None:
    """Pass if an adapter is of the engine's base, by any of the names that the catalog knows it by."""
    own = version.base_model or version.base
    name = base_names(workspace)(base) or base
    if own is not None and base_key(own) == base_key(name):
        return
    hint = None if is_hub_id(name) else f"state in {BASE_VARIABLE} which base the engine serves"
    found = f"is of the base `{own}`" if own else "names no base"
    raise AdapterRefused(f"`{version.source}` {found}, and the engine serves `{name}`", hint=hint)


def _digest_of(version: AdapterVersion) -> Digest:
    lines = sorted(f"{file.sha256} {file.name}\n" for file in version.files)
    return Digest.of_bytes("".join(lines).encode())


def _place(workspace: Workspace, version: AdapterVersion, folder: Path) -> None:
    """Write an adapter's files unless all are there with their digests; what is damaged is written again."""
    if folder.is_dir():
        if _is_whole(version, folder):
            return
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise SourceUnreadable(
                f"the damaged folder `{folder}` cannot be deleted: {(error.strerror or str(error)).lower()}",
                hint="delete it while no engine runs",
            ) from error
    copy_adapter(workspace.store, version, folder)
    if not _is_whole(version, folder):
        raise StoreDamaged(f"the files of `{version.source}` changed while they were copied")


def _is_whole(version: AdapterVersion, folder: Path) -> bool:
    try:
        return all(
            hash_file(below(folder, check_file_name(file.name))) == file.sha256 for file in version.files
        )
    except SourceUnreadable:
        return False


def _require_served(version: AdapterVersion, folder: Path) -> None:
    """Pass if the engine serves all of an adapter; its own limit on ranks is not known here."""
    inspection = inspect_adapter(folder, scan_weights=False)
    found = [
        each
        for each in judge_for_engine(inspection, EngineLimits(max(ALLOWED_RANKS)))
        if each.effect is Effect.NOT_SERVED
    ]
    if found:
        raise AdapterRefused(f"`{version.source}` is not served by vLLM: {_reason(found[0])}", findings=found)


def _reason(finding: Finding) -> str:
    return f"{finding.title[0].lower()}{finding.title[1:]} ({finding.place}: {finding.found}; {finding.code})"
