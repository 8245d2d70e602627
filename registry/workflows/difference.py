"""``diff``: two versions of an adapter, or of a bundle, from wherever each of them is.

A folder is read in place, and a catalogued adapter in the store. A version in a git commit or on the Hub is
copied into a scratch folder first.
"""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path

from ...bundle import Bundle
from ...bundle.difference import compare_bundles
from ...bundle.saved import refuse_saved_model
from ...files.digests import hash_file
from ...files.git import CommittedFile, Repository
from ...files.progress import Progress, silent
from ...files.reading import read_bounded, real_path
from ...files.scratch import Purpose, temporary_folder
from ...files.writing import write_errors
from ...inspection.adapter import inspect_adapter, inspect_files
from ...inspection.difference import AdapterFiles, compare_adapters
from ...inspection.folder import file_of_link
from ...inspection.safetensors_file import LFS_START
from ...schemas.bundle import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from ...schemas.difference import AdapterDifference, BundleDifference
from ...schemas.errors import HubRefused, SourceUnreadable, UsageError
from ...schemas.limits import MAX_ADAPTER_FILE_BYTES, MAX_BUNDLE_BYTES
from ...schemas.names import NAME_PATTERN, CatalogSource, FolderSource, HubSource, parse_path_or_source
from ...schemas.quotation import quote_name
from ..catalog.records import BundleVersion
from ..workspace import StrPath, Workspace

# What a source that begins like this means is clear before anything behind a colon is looked at.
_OTHER_SOURCES = (".", "/", "hf:", "http:", "https:")
_NAME = re.compile(NAME_PATTERN)
_MAX_POINTER_BYTES = 1024
_POINTER = re.compile(rb"^oid sha256:([0-9a-f]{64})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class GitSource:
    """A folder in a commit, by its path below the root of the repository around the current folder."""

    ref: str
    path: str


def compare_versions(
    workspace: Workspace, first: StrPath, second: StrPath, *, progress: Progress = silent
) -> AdapterDifference | BundleDifference:
    """Return how the second version differs from the first.

    Raises:
        UsageError: a source is malformed, or one is an adapter and the other a bundle.
        NotInCatalog: nothing of that name is catalogued.
        AdapterRefused, BundleRefused, InvalidDocument: one cannot be read as an adapter or a bundle.
        SourceUnreadable: a file is missing or cannot be read.
        HubRefused, HubUnavailable, HubMismatch: one on the Hub cannot be had.
    """
    with temporary_folder(Purpose.DIFF) as scratch:
        one = _open(workspace, first, scratch / "first", progress)
        other = _open(workspace, second, scratch / "second", progress)
        if isinstance(one, AdapterFiles) and isinstance(other, AdapterFiles):
            return compare_adapters(one, other, progress=progress)
        if isinstance(one, OpenedBundle) and isinstance(other, OpenedBundle):
            names = one.name, other.name
            return compare_bundles(one.bundle, other.bundle, names=names, progress=progress)
    adapter, bundle = (one, other) if isinstance(one, AdapterFiles) else (other, one)
    raise UsageError(
        f"{adapter.name} is an adapter, and {bundle.name} a bundle",
        hint="compare two of one kind; `meteora-registry extract` gives a member of a bundle back",
    )


@dataclass(frozen=True, slots=True)
class OpenedBundle:
    """A bundle and what messages call it."""

    name: str
    bundle: Bundle


def parse_git_source(text: str) -> GitSource | None:
    """Return the folder in a commit that ``REF:PATH`` names; None for any other source.

    As for git, a PATH that begins with ``./`` is relative to the current folder. ``bundle:member`` is a
    catalogued name, so a folder without a slash is written ``REF:./folder``.
    """
    ref, colon, path = text.partition(":")
    if not colon or text.startswith(_OTHER_SOURCES) or os.path.lexists(text):
        return None
    if "/" in path or path in ("", ".", "..") or not _NAME.fullmatch(ref):
        return GitSource(ref, path)
    return None


def _open(
    workspace: Workspace, source: StrPath, scratch: Path, progress: Progress
) -> AdapterFiles | OpenedBundle:
    if isinstance(source, str) and (git := parse_git_source(source)) is not None:
        return _open_committed(git, scratch)
    match parse_path_or_source(source):
        case FolderSource(path):
            return _open_folder(str(path), path)
        case CatalogSource() as name:
            return _open_catalogued(workspace, name)
        case HubSource() as remote:
            return _open_on_hub(workspace, remote, scratch, progress)


def _open_folder(name: str, folder: Path) -> AdapterFiles | OpenedBundle:
    if (folder / MANIFEST_FILE).is_file():
        return OpenedBundle(quote_name(name), Bundle.open(folder))
    refuse_saved_model(folder)
    return AdapterFiles(quote_name(name), inspect_adapter(folder), file_of_link(folder / WEIGHTS_FILE))


def _open_catalogued(workspace: Workspace, source: CatalogSource) -> AdapterFiles | OpenedBundle:
    version = workspace.catalog.find_any(source)
    if isinstance(version, BundleVersion):
        return OpenedBundle(quote_name(str(version.source)), Bundle.open(version.path))
    config, weights = (
        workspace.store.check(version.file(name).sha256) for name in (CONFIG_FILE, WEIGHTS_FILE)
    )
    return AdapterFiles(quote_name(str(version.source)), inspect_files(config, weights), weights)


def _open_committed(source: GitSource, scratch: Path) -> AdapterFiles | OpenedBundle:
    repository = Repository.find(Path.cwd())
    commit = repository.commit_of(source.ref)
    folder = _path_in(repository, source)
    name = quote_name(f"{source.ref}:{folder}")
    files = repository.files_in(commit, folder)
    wanted = [CONFIG_FILE, WEIGHTS_FILE, *([MANIFEST_FILE] if MANIFEST_FILE in files else [])]
    with write_errors(scratch):
        scratch.mkdir()
        for file in wanted:
            if file not in files:
                raise SourceUnreadable(f"{name} has no `{file}`", hint="expected a folder with an adapter")
            _copy_committed(repository, files[file], scratch / file, name)
    if MANIFEST_FILE in files:
        return OpenedBundle(name, Bundle.open(scratch))
    config, weights = scratch / CONFIG_FILE, scratch / WEIGHTS_FILE
    return AdapterFiles(name, inspect_files(config, weights), weights)


def _path_in(repository: Repository, source: GitSource) -> str:
    path = source.path
    if path.startswith(".") and path.split("/")[0] in (".", ".."):
        path = posixpath.join(_place_in(repository), path)
    inside = posixpath.normpath(path.lstrip("/")) if path.strip("/") else ""
    if inside.split("/")[0] == "..":
        raise UsageError(f"{quote_name(source.path)} leads out of the repository")
    return "" if inside == "." else inside


def _place_in(repository: Repository) -> str:
    return real_path(Path.cwd()).relative_to(real_path(repository.root)).as_posix()


def _copy_committed(repository: Repository, file: CommittedFile, target: Path, name: str) -> None:
    """Write a committed file, or in place of a pointer of Git LFS the file that it stands for."""
    if file.size_bytes > MAX_BUNDLE_BYTES:
        raise SourceUnreadable(f"`{target.name}` of {name} has more than {MAX_BUNDLE_BYTES} bytes")
    repository.copy_file(file, target)
    if file.size_bytes > _MAX_POINTER_BYTES:
        return
    data = read_bounded(target, _MAX_POINTER_BYTES)
    found = _POINTER.search(data)
    if not data.startswith(LFS_START) or found is None:
        return
    digest = found[1].decode("ascii")
    large = repository.lfs_object(digest)
    if not large.is_file() or hash_file(large) != digest:
        raise SourceUnreadable(
            f"`{target.name}` of {name} is kept by Git LFS, and its bytes are not in this clone",
            hint="`git lfs fetch --all` fetches them",
        )
    target.unlink()
    target.symlink_to(large)


def _open_on_hub(
    workspace: Workspace, source: HubSource, scratch: Path, progress: Progress
) -> AdapterFiles | OpenedBundle:
    from ..dependencies import require_hub_client

    require_hub_client()
    hub = workspace.hub
    repository, commit = hub.locate(source.repository, source.revision)
    pinned = HubSource(repository, commit, source.subfolder)
    name = f"`{repository}@{commit}`"
    scratch.mkdir()
    if source.subfolder is None and hub.list_files(repository, commit).find(MANIFEST_FILE) is not None:
        return OpenedBundle(name, _fetch_bundle(workspace, pinned, scratch))
    from .hub_adapters import check_sizes, download_adapter, find_adapters

    (candidate,) = find_adapters(hub, pinned)
    check_sizes(candidate, MAX_ADAPTER_FILE_BYTES)
    if missing := [file for file in (CONFIG_FILE, WEIGHTS_FILE) if file not in candidate.files]:
        raise HubRefused(f"`{candidate}` has no `{missing[0]}`")
    download_adapter(hub, candidate, scratch, name=candidate.default_name, progress=progress)
    return AdapterFiles(f"`{candidate}`", inspect_adapter(scratch), scratch / WEIGHTS_FILE)


def _fetch_bundle(workspace: Workspace, source: HubSource, scratch: Path) -> Bundle:
    from ..hub.download import download_files
    from .remote_bundles import find_bundle

    remote = find_bundle(workspace.hub, source, scratch)
    weights = remote.wanted.get(WEIGHTS_FILE)
    if weights is None or weights.size_bytes > MAX_BUNDLE_BYTES:
        raise HubRefused(f"{remote} has no `{WEIGHTS_FILE}` of at most {MAX_BUNDLE_BYTES} bytes")
    download_files(workspace.hub, remote.listing, {WEIGHTS_FILE: weights}, scratch)
    return Bundle.open(scratch)
