"""``add``: an adapter in a folder becomes a version in the catalog, its bytes in the store.

The folder is inspected in place; then its files are copied, and the copies must have the digests
that the inspection saw, so what is recorded is what was judged. The bytes come first and the record
last: whenever this is killed, the catalog names nothing that is not there.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...files.progress import UNCOUNTED, Bytes, Progress, Step, silent
from ...files.reading import real_path
from ...inspection.adapter import inspect_adapter
from ...inspection.folder import file_of_link
from ...schemas.base_name import find_snapshot, is_same_base
from ...schemas.bundle import CONFIG_FILE, WEIGHTS_FILE
from ...schemas.digest import Digest
from ...schemas.errors import SourceUnreadable, StoreDamaged
from ...schemas.manifest import Origin
from ...schemas.names import CatalogSource, check_entry, check_name, name_of_folder
from ..catalog.catalog import Catalog
from ..catalog.column_types import clean_foreign_text
from ..catalog.records import AdapterVersion, Added, NewAdapterVersion, StoredFile, Target
from ..store import Intake, Store
from ..workspace import Workspace
from .base_place import check_base

# Kept for people and for a bundle's card, when they are there and not larger than this.
TEXT_FILES = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
MAX_TEXT_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Addition:
    """The result of adding an adapter.

    ``source`` is where it was: a folder, or a repository at a commit. ``created`` is False if the name
    had this content already; ``duplicates`` are the versions of other names with the same content;
    ``skipped`` lists the text files that were not kept, with the reason; ``warnings`` has what may be a
    mistake.
    """

    source: str
    version: AdapterVersion
    created: bool
    duplicates: tuple[CatalogSource, ...]
    skipped: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def add_folder(
    workspace: Workspace,
    folder: Path,
    *,
    name: str | None = None,
    base: str | None = None,
    tags: Iterable[str] = (),
    origin: Origin | None = None,
    license_name: str | None = None,
    follow_links: bool = False,
    claimed_by: str | None = None,
    progress: Progress = silent,
) -> Addition:
    """Put the adapter in a folder into the store and the catalog.

    Args:
        workspace: whose catalog and store it goes into.
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        name: by default made from the folder's name, or its parent's where that is the more telling one.
        base: the base model, as the person who adds it knows it; by default what the adapter declares.
        tags: words attached to the version.
        origin: where the folder's files came from; by default the folder, by its last name.
        license_name: its licence, where no card beside it names one.
        follow_links: whether files that are links are read; those in a Hub cache are in any case.
        claimed_by: the bundle that states origin and licence, where the folder came out of one.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        AdapterRefused: it is broken; ``findings`` has the reasons, and nothing was recorded.
        UsageError: the name, the base or a tag is malformed.
        AlreadyInCatalog: a bundle has the name, or the content is there with another stated base.
        SourceUnreadable: a file cannot be read, or changed while it was being read.
    """
    check = check_name if claimed_by is None else check_entry
    wanted_name = check(name if name is not None else name_of_folder(folder))
    wanted_tags = tuple(check_name(tag, what="tag") for tag in tags)
    if base is not None:
        check_base(base)
    label = str(folder) if origin is None else str(origin)
    inspection = inspect_adapter(folder, follow_links=follow_links)
    sound = inspection.require_sound(f"`{label}` is broken and was not added")
    facts = dataclasses.replace(sound.facts, license=sound.facts.license or license_name)
    new = NewAdapterVersion(
        name=wanted_name,
        origin=origin or folder_origin(folder),
        files=(),
        stated_base=base,
        facts=facts,
        targets=Target.all_of(sound.inventory) if sound.inventory else (),
        findings=sound.findings,
        claimed_by=claimed_by,
    )
    catalog = workspace.catalog
    same = catalog.find_content(facts.weights_sha256, facts.canonical_config_sha256)
    duplicates = tuple(source for source in same if source.name != wanted_name)
    known = next((source for source in same if source.name == wanted_name), None)
    if known is not None and _is_stored(workspace.store, catalog.find(known)):
        # The name has this content, and the store its bytes: nothing to copy.
        added = catalog.add_version(new, tags=wanted_tags)
        return Addition(label, added.version, added.created, duplicates, ())
    place = partial(file_of_link, follow_links=follow_links)
    added, skipped = _store_and_record(workspace, folder, new, wanted_tags, place, progress)
    warnings = tuple(_compare_with_last(catalog, added.version)) if added.created else ()
    return Addition(label, added.version, added.created, duplicates, skipped, warnings)


def _compare_with_last(catalog: Catalog, version: AdapterVersion) -> Iterator[str]:
    """Yield a warning if a version has nothing in common with the one before: the name may be a mistake."""
    numbers = [number for number in catalog.versions_of(version.name) if number < version.version]
    if not numbers:
        return
    last = catalog.find(CatalogSource(version.name, max(numbers)))
    bases = [each.base_model or each.base for each in (version, last)]
    if bases[0] and bases[1] and is_same_base(bases[0], bases[1]):
        return
    if not _shapes_of(version) & _shapes_of(last):
        yield (
            f"{version.source} has neither the base nor a module's shape in common with {last.source}: if it "
            "is another adapter, remove it and add it again with `--name`"
        )


def _shapes_of(version: AdapterVersion) -> set[tuple[str, int, int]]:
    return {(target.kind, target.in_features, target.out_features) for target in version.targets}


def folder_origin(folder: Path) -> Origin:
    """Return the origin of an adapter in a folder: the folder's own name, without where it is.

    Of a snapshot in a Hub cache it is the repository at the commit, which the folder only claims: such a
    folder is easily made by hand.
    """
    snapshot = find_snapshot(real_path(folder))
    if snapshot is not None:
        location = clean_foreign_text(str(snapshot))
        return Origin(kind="folder", location=location, commit=snapshot.commit)
    return Origin(kind="folder", location=clean_foreign_text(real_path(folder).name), commit=None)


def _is_stored(store: Store, version: AdapterVersion) -> bool:
    """Return whether the bytes are there unchanged; if not, adding the same content again repairs them."""
    try:
        for digest in (version.config_sha256, version.weights_sha256):
            store.check(digest)
    except StoreDamaged:
        return False
    return True


def _store_and_record(
    workspace: Workspace,
    folder: Path,
    new: NewAdapterVersion,
    tags: tuple[str, ...],
    place: Callable[[Path], Path],
    progress: Progress,
) -> tuple[Added, tuple[str, ...]]:
    catalog, store = workspace.catalog, workspace.store
    with store.intake() as intake:
        step = Step(f"storing {new.name}", Bytes(new.facts.weights_bytes), progress)
        files = [
            _copy_judged(intake, folder / CONFIG_FILE, place, new.facts.config_sha256),
            _copy_judged(intake, folder / WEIGHTS_FILE, place, new.facts.weights_sha256, step),
        ]
        texts, skipped = _copy_texts(intake, folder)
        # Before the first blob appears there, so that no other catalog deletes it as unreferenced.
        store.mark(catalog.ensure_identity(), catalog.referenced)
        with intake.published():
            complete = dataclasses.replace(new, files=(*files, *texts))
            return catalog.add_version(complete, tags=tags, confirm=intake.confirm), skipped


def _copy_judged(
    intake: Intake, path: Path, place: Callable[[Path], Path], digest: Digest, step: Step = UNCOUNTED
) -> StoredFile:
    blob = intake.copy(place(path), step=step)
    if blob.sha256 != digest:
        raise SourceUnreadable(
            f"`{path}` changed while it was being read", hint="add it again when nothing writes to it"
        )
    return StoredFile(path.name, blob.sha256, blob.size_bytes)


def _copy_texts(intake: Intake, folder: Path) -> tuple[list[StoredFile], tuple[str, ...]]:
    files, skipped = [], []
    for path in (folder / name for name in TEXT_FILES):
        if not os.path.lexists(path):
            continue
        try:
            blob = intake.copy(file_of_link(path), max_bytes=MAX_TEXT_BYTES)
        except SourceUnreadable as error:
            skipped.append(f"{error}, and was not kept")
        else:
            files.append(StoredFile(path.name, blob.sha256, blob.size_bytes))
    return files, tuple(skipped)
