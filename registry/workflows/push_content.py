"""What is pushed: the files of a verified bundle, or those of a catalogued adapter."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import yaml

from ...bundle import Bundle
from ...files.progress import Progress, silent
from ...fuser.licenses import combine_licenses
from ...schemas.bundle import CARD_FILE, CONFIG_FILE, MANIFEST_FILE, VERIFICATION_FILE, WEIGHTS_FILE
from ...schemas.digest import Digest
from ...schemas.errors import BundleRefused, StoreDamaged, UsageError
from ...schemas.manifest import Manifest
from ...schemas.names import CatalogSource, FolderSource, HubSource, below, check_file_name, parse_source
from ..catalog.catalog import Catalog
from ..catalog.records import AdapterVersion
from ..hub.listing import FileDigests
from ..store import Store
from .add import TEXT_FILES
from .find_bundle import find_bundle_folder
from .push import Upload, digest_files
from .source_record import require_source_record

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_VERIFY = "run `meteora-registry verify {folder} --level source --record` where the members' files are"


def open_upload(
    open_catalog: Callable[[], AbstractContextManager[Catalog]],
    open_store: Callable[[], Store],
    source: str | os.PathLike[str],
    scratch: Path,
    *,
    progress: Progress = silent,
) -> tuple[CatalogSource | Path, Upload]:
    """Return what is pushed, for ``note_push``, and its upload.

    Args:
        open_catalog: called when ``source`` is a catalogued name.
        open_store: called when that name is an adapter's.
        source: a bundle's folder, or a catalogued bundle or adapter.
        scratch: an empty folder that is kept until the push is done.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        UsageError: it is a repository on the Hub.
        NotInCatalog: there is no such version.
        BundleRefused, InvalidDocument, SourceUnreadable, StoreDamaged: it cannot be pushed.
    """
    parsed = parse_source(source) if isinstance(source, str) else FolderSource(Path(source))
    if isinstance(parsed, HubSource):
        raise UsageError(f"`{source}` is a repository on the Hub, expected a folder or a catalogued name")
    noted: CatalogSource | None = None
    if isinstance(parsed, CatalogSource):
        with open_catalog() as catalog:
            version = catalog.find_any(parsed)
        if isinstance(version, AdapterVersion):
            return version.source, adapter_upload(open_store(), version, scratch, progress=progress)
        noted = version.source
    folder = find_bundle_folder(open_catalog, source)
    return noted or folder, bundle_upload(folder, progress=progress)


def bundle_upload(folder: Path, *, progress: Progress = silent) -> Upload:
    """The files of a bundle that passed a verification at level source, for this very manifest.

    Raises:
        BundleRefused: it was not verified so, or a file is not what the manifest says.
        InvalidDocument: the manifest or the record is damaged.
        SourceUnreadable: a file cannot be read.
    """
    bundle = Bundle(folder)
    manifest, manifest_sha256 = bundle.manifest, bundle.manifest_sha256
    require_source_record(bundle, f"`{folder}`", hint=_VERIFY.format(folder=folder))
    files = {
        name: below(folder, name) for name in (*sorted(manifest.files), MANIFEST_FILE, VERIFICATION_FILE)
    }
    if missing := [name for name, path in files.items() if not path.is_file() or path.is_symlink()]:
        raise BundleRefused(f"`{folder}` lacks `{missing[0]}`, which its manifest lists")
    digests = digest_files(files, progress)
    _compare_with_manifest(folder, manifest, digests)
    names = ", ".join(member.name for member in manifest.members)
    return Upload(
        title=f"MeteoRA bundle {manifest_sha256.short} of {names}"[:200],
        tag=f"meteora-{manifest_sha256.short}",
        files=files,
        digests=digests,
        replaces=frozenset(),
        holds_bundle=True,
    )


def adapter_upload(
    store: Store, version: AdapterVersion, scratch: Path, *, progress: Progress = silent
) -> Upload:
    """The files of a catalogued adapter; one without a card gets a short one, written into ``scratch``.

    Raises:
        StoreDamaged: its bytes are missing or changed.
        InvalidDocument: the catalog has a file under a name that no file of an adapter can have.
    """
    files = {}
    for file in version.files:
        # A name of its own, because progress and messages show it; the blob's is its digest. Others may
        # write to the database, so the name is checked again where a link is made under it.
        files[file.name] = below(scratch, check_file_name(file.name))
        files[file.name].symlink_to(store.path_of(file.sha256))
    if CARD_FILE not in files:
        files[CARD_FILE] = scratch / CARD_FILE
        files[CARD_FILE].write_text(_card_of(version), encoding="utf-8", newline="\n")
    digests = digest_files(files, progress)
    for file in version.files:
        if digests[file.name].sha256 != file.sha256:
            raise StoreDamaged(
                f"the blob of `{file.name}` of `{version.source}` was changed",
                hint="add the adapter again from its source",
            )
    content = Digest.of_bytes(f"{version.weights_sha256} {version.canonical_config_sha256}".encode())
    return Upload(
        title=f"LoRA adapter {version.source}",
        tag=f"meteora-{content.short}",
        files=files,
        digests=digests,
        replaces=frozenset({CONFIG_FILE, WEIGHTS_FILE, *TEXT_FILES}),
        holds_bundle=False,
    )


def _compare_with_manifest(folder: Path, manifest: Manifest, digests: Mapping[str, FileDigests]) -> None:
    for name, listed in manifest.files.items():
        if digests[name].sha256 != listed.sha256:
            raise BundleRefused(
                f"`{name}` in `{folder}` was changed: it has the digest `{digests[name].sha256}`, "
                f"the manifest says `{listed.sha256}`",
                hint="fuse the bundle again",
            )


def _card_of(version: AdapterVersion) -> str:
    facts: dict[str, object] = {"library_name": "peft", "tags": ["lora"]}
    base = version.base_model or version.base
    if base is not None and _HUB_NAME.fullmatch(base):
        facts |= {"base_model": base, "base_model_relation": "adapter"}
    combined = combine_licenses([version.license])
    facts["license"] = combined.identifier
    if combined.name is not None:
        facts["license_name"] = combined.name
    rank = "unknown" if version.max_rank is None else version.max_rank
    return (
        f"---\n{yaml.safe_dump(facts, allow_unicode=False)}---\n\n# {version.name}\n\n"
        f"A LoRA adapter of rank {rank}, {version.weights_bytes} bytes, weights `{version.weights_sha256}`.\n"
    )
