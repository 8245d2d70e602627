"""A bundle on the Hub before its weights are fetched: its files at a commit, its config and its manifest.

Nothing here computes, so it needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...bundle import Bundle
from ...bundle.files import check_listed
from ...bundle.signature import MAX_SIGNATURE_BYTES
from ...files.reading import read_bounded
from ...schemas.bundle import (
    CARD_FILE,
    CONFIG_FILE,
    MANIFEST_FILE,
    MAX_BUNDLE_CONFIG_BYTES,
    MAX_CARD_BYTES,
    SIGNATURE_FILE,
    VERIFICATION_FILE,
    BundleConfig,
)
from ...schemas.errors import BundleRefused, HubMismatch, HubRefused, UsageError
from ...schemas.manifest import MAX_MANIFEST_BYTES, Manifest
from ...schemas.names import HubSource
from ..hub.client import Hub
from ..hub.download import download_files
from ..hub.listing import Listing, RemoteFile

# What may be in a repository and is left there if it is larger.
_OPTIONAL = {CARD_FILE: MAX_CARD_BYTES, SIGNATURE_FILE: MAX_SIGNATURE_BYTES}


@dataclass(frozen=True, slots=True)
class RemoteBundle:
    """A bundle on the Hub: its files at a commit, and its manifest."""

    listing: Listing
    manifest: Manifest

    def __str__(self) -> str:
        return f"`{self.listing.repository}@{self.listing.commit}`"

    @property
    def ignored(self) -> tuple[str, ...]:
        """The repository's files that are not part of the bundle."""
        return tuple(file.path for file in self.listing.own_files if file.path not in self.wanted)

    @property
    def wanted(self) -> dict[str, RemoteFile]:
        """The files that are fetched, by their paths; a card or a signature too long for one is left out."""
        files = (
            self.listing.find(name)
            for name in (*self.manifest.files, MANIFEST_FILE, VERIFICATION_FILE, *_OPTIONAL)
        )
        return {
            file.path: file
            for file in files
            if file is not None and file.size_bytes <= _OPTIONAL.get(file.path, file.size_bytes)
        }


def find_bundle(hub: Hub, source: HubSource, scratch: Path, *, cache: Path | None = None) -> RemoteBundle:
    """Find the bundle in a repository, and check its config, its manifest and the list of files.

    Raises:
        HubRefused: there is no repository, or no bundle in it.
        HubMismatch: the list of files is not that of the manifest.
        BundleRefused, InvalidDocument: this reader does not know the format, or it is malformed.
    """
    if source.subfolder is not None:
        raise UsageError(f"a bundle is at the root of its repository, found `{source.subfolder}`")
    listing = hub.list_files(*hub.locate(source.repository, source.revision))
    start = {
        name: listing.find(name) for name in (CONFIG_FILE, MANIFEST_FILE, VERIFICATION_FILE, SIGNATURE_FILE)
    }
    files = {name: file for name, file in start.items() if file is not None}
    if SIGNATURE_FILE in files and files[SIGNATURE_FILE].size_bytes > MAX_SIGNATURE_BYTES:
        del files[SIGNATURE_FILE]
    if MANIFEST_FILE not in files or CONFIG_FILE not in files:
        raise HubRefused(
            f"`{listing.repository}@{listing.commit}` is not a bundle: it has no `{MANIFEST_FILE}`",
            hint=f"an adapter is added with `meteora-registry add {source.repository}`; a routed model that "
            "PEFT saved is adopted, once it is on this machine, with `meteora-registry gate adopt`",
        )
    for name, limit in ((CONFIG_FILE, MAX_BUNDLE_CONFIG_BYTES), (MANIFEST_FILE, MAX_MANIFEST_BYTES)):
        if files[name].size_bytes > limit:
            raise BundleRefused(f"`{name}` has {files[name].size_bytes} bytes, expected at most {limit}")
    download_files(hub, listing, files, scratch, cache=cache)
    BundleConfig.read(
        read_bounded(scratch / CONFIG_FILE, MAX_BUNDLE_CONFIG_BYTES), max_bytes=MAX_BUNDLE_CONFIG_BYTES
    )
    remote = RemoteBundle(listing, Bundle(scratch).manifest)
    if problems := check_listed(remote.manifest):
        raise BundleRefused(f"{remote}: {problems[0]}", hint="nothing of it was kept")
    _compare_listing(remote)
    return remote


def _compare_listing(remote: RemoteBundle) -> None:
    """Refuse, before the weights are fetched, what the list of files already shows to be changed."""
    for name, record in sorted(remote.manifest.files.items()):
        if name == CARD_FILE:
            continue
        file = remote.listing.find(name)
        if file is None:
            raise HubMismatch(f"{remote} lacks `{name}`, which its manifest lists")
        if file.size_bytes != record.size_bytes or file.sha256 not in (None, record.sha256):
            raise HubMismatch(
                f"{remote} was changed: `{name}` is not the file that the manifest lists; nothing was kept",
                hint="pull an earlier revision, such as the tag that `push` set",
            )
