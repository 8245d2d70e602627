"""``verify``: a bundle on disk, against itself or against its members' own files in the store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...bundle import Bundle
from ...bundle.files import write_record
from ...files.progress import Progress, silent
from ...fuser.verify import verify_bundle
from ...schemas.errors import MeteoraError
from ...schemas.manifest import Manifest
from ...schemas.verification import Level, VerificationRecord
from ..store import Store
from .base import read_base_modules
from .member import stored_sources


def verify(
    store: Store | None,
    folder: Path,
    *,
    level: Level,
    base: Path | None = None,
    keep_record: bool = False,
    progress: Progress = silent,
) -> VerificationRecord:
    """Verify the bundle in a folder on every backend of this machine.

    Args:
        store: where the members' own files are looked for; used at level `source` alone.
        folder: the bundle.
        level: how far to go.
        base: the folder of the base model, asked where the bundle says that the base renamed modules.
        keep_record: write the record into the bundle, in place of the one that is there.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        SourceUnreadable: the manifest or the base cannot be read, or the record cannot be written.
    """
    manifest = _manifest_if_sound(folder)
    sources = stored_sources(store, manifest) if store and manifest and level is Level.SOURCE else {}
    record = verify_bundle(
        folder,
        level=level,
        sources=sources,
        renamed=_renaming_by(base, manifest) if base and manifest else None,
        with_triton=True,
        progress=progress,
    )
    if keep_record:
        write_record(folder, record)
    return record


def _renaming_by(base: Path, manifest: Manifest) -> Mapping[str, str]:
    old_paths = {path for member in manifest.members for path in member.renamed_modules}
    return read_base_modules(base, sorted(old_paths)).renamed


def _manifest_if_sound(folder: Path) -> Manifest | None:
    try:
        return Bundle(folder).manifest
    except MeteoraError:
        # The verification itself says what is wrong with the manifest.
        return None
