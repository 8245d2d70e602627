"""``pull``: a bundle from the Hub onto this machine, every byte compared with its manifest.

The manifest and the small files come first and are judged; the weights follow. The bundle appears in
its place only when it is intact and its members are those that its manifest quotes; it is catalogued last,
together with its members. Nothing that it states of itself is taken for more than a claim. The files'
digests are compared here, those of the members by the verification (``check_member_bytes``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from ...bundle import Bundle
from ...bundle.files import check_card, staged_target
from ...bundle.signature import has_signature
from ...bundle.signers import Signers, signers_of_environment
from ...files.digests import hash_file
from ...files.progress import Bytes, Progress, Step, silent
from ...files.reading import real_path
from ...files.scratch import Purpose, temporary_folder
from ...fuser.extraction import can_be_rewritten
from ...fuser.verifier import verify_bundle
from ...schemas.bundle import CARD_FILE, MANIFEST_FILE
from ...schemas.errors import BundleRefused, HubMismatch, HubRefused
from ...schemas.limits import MAX_BUNDLE_BYTES
from ...schemas.names import HubSource, check_name, member_entry, suggest_name
from ...schemas.signers import SignedBy
from ...schemas.verification import Level, Outcome, VerificationRecord
from ..catalog.records import BundleVersion
from ..hub.client import Hub
from ..hub.download import download_files
from ..hub.listing import RemoteFile
from ..workspace import Workspace
from .bundle_folder import (
    check_no_adapter_has,
    find_member,
    register_bundle,
    require_signer,
    require_source_record,
)
from .bundle_members import refuse_broken_members, register_members
from .remote_bundles import RemoteBundle, find_bundle

_NO_RECORD = "ask its publisher to push it with `meteora-registry push`, which requires the record"


@dataclass(frozen=True, slots=True)
class Pulled:
    """The result of a pull; ``created`` is False where the folder had the same bundle already.

    ``ignored`` are files of the repository that are not part of the bundle, and were not fetched;
    ``not_compared`` the members whose own files cannot be written again and compared with their digests;
    ``card`` states how the card differs from the one that the manifest lists, and is empty if it does not;
    ``signed_by`` is None unless a signer was required, and ``has_signature`` is True if one came with it.
    """

    folder: Path
    repository: str
    commit: str
    created: bool
    record: VerificationRecord
    version: BundleVersion
    ignored: tuple[str, ...]
    not_compared: tuple[str, ...]
    card: tuple[str, ...]
    has_signature: bool
    signed_by: SignedBy | None


def pull(
    workspace: Workspace,
    source: HubSource,
    folder: Path,
    *,
    name: str | None = None,
    max_bytes: int = MAX_BUNDLE_BYTES,
    signers: Signers | None = None,
    progress: Progress = silent,
) -> Pulled:
    """Fetch, verify and register a bundle and its members.

    A member whose content the catalog has is taken as that; another one is catalogued as ``bundle:member``,
    with its origin as a claim of the bundle.

    Args:
        workspace: whose catalog records bundle and members; the members' own bytes, which the bundle gives
            back, go into its store.
        source: the repository and the revision.
        folder: the new folder, or one that holds this very bundle already.
        name: what the catalog calls the bundle, by default made from the repository's name.
        max_bytes: a larger bundle is refused before its weights are downloaded.
        signers: one of them must have signed it; by default those of METEORA_SIGNERS, if that is set.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        HubRefused, HubUnavailable: it cannot be had.
        HubMismatch, BundleRefused, InvalidDocument: it differs from its manifest, did not verify, or is not
            signed by an accepted signer; nothing is left.
        UsageError: the folder exists and holds something else, or the name is malformed.
        AlreadyInCatalog: an adapter has the name.
        SourceUnreadable: the folder cannot be written.
    """
    bundle_name = check_name(name or suggest_name(source.repository.partition("/")[2]))
    catalog, hub = workspace.catalog, workspace.hub
    check_no_adapter_has(catalog, bundle_name)
    signers = signers_of_environment() if signers is None else signers
    with temporary_folder(Purpose.PULL) as scratch:
        remote = find_bundle(hub, source, scratch)
        # Once more below, of the files that stay: this one saves fetching the weights.
        require_signer(scratch, signers, str(remote))
        for member in remote.manifest.members:
            member_entry(bundle_name, member.name)
        created = not _is_here(folder, scratch)
    with staged_target(folder) if created else nullcontext(folder) as place:
        if created:
            _fetch(hub, remote, place, max_bytes=max_bytes, cache=None, progress=progress)
        signed_by = require_signer(place, signers, str(remote) if created else f"`{folder}`")
        claimed, record = _verify(place, remote, progress)
        bundle = Bundle.open(place)
        # The others were inspected when they were added.
        new = [member for member in bundle.members if find_member(catalog, member.entry) is None]
        refuse_broken_members(bundle, new)
    claim = f"{remote.listing.repository}@{remote.listing.commit}"
    members = register_members(workspace, folder, bundle_name, claim)
    version = register_bundle(catalog, folder, bundle_name, members, claimed, claimed_by=claim)
    catalog.record_verification(record, real_path(folder))
    if signed_by is not None:
        catalog.record_signature(version.source, "check-signature", signed_by)
    return Pulled(
        folder,
        remote.listing.repository,
        remote.listing.commit,
        created,
        record,
        # Read again, because the verification of this machine came last.
        catalog.find_bundle(version.source),
        remote.ignored,
        tuple(member.name for member in bundle.members if not can_be_rewritten(member)),
        tuple(check_card(folder, remote.manifest)),
        has_signature(folder),
        signed_by,
    )


@contextmanager
def fetched_bundle(hub: Hub, source: HubSource, *, progress: Progress = silent) -> Iterator[Path]:
    """Yield the folder of a bundle fetched from the Hub, with its record checked; nothing is kept.

    Raises:
        HubRefused, HubUnavailable, HubMismatch, BundleRefused, InvalidDocument: as ``pull``.
    """
    with temporary_folder(Purpose.VERIFY) as scratch:
        start, folder, cache = (scratch / name for name in ("start", "bundle", "cache"))
        remote = find_bundle(hub, source, start, cache=cache)
        _fetch(hub, remote, folder, max_bytes=MAX_BUNDLE_BYTES, cache=cache, progress=progress)
        require_source_record(Bundle(folder), str(remote), hint=_NO_RECORD)
        yield folder


def _is_here(folder: Path, scratch: Path) -> bool:
    """Return whether the folder has a bundle with the manifest that was just fetched."""
    own = folder / MANIFEST_FILE
    return own.is_file() and hash_file(own) == hash_file(scratch / MANIFEST_FILE)


def _fetch(
    hub: Hub,
    remote: RemoteBundle,
    folder: Path,
    *,
    max_bytes: int,
    cache: Path | None,
    progress: Progress,
) -> None:
    found = remote.wanted
    total = sum(file.size_bytes for file in found.values())
    if total > max_bytes:
        raise HubRefused(
            f"{remote} has {total} bytes, the limit is {max_bytes}; its weights were not downloaded",
            hint="raise the limit with `--max-bytes`",
        )
    step = Step("checking", Bytes(total), progress)
    small = {name: file for name, file in found.items() if file.sha256 is None}
    large = {name: file for name, file in found.items() if name not in small}
    folder.mkdir(exist_ok=True)
    for part in (small, large):
        download_files(hub, remote.listing, part, folder, cache=cache, step=step)
        _check_digests(remote, part, folder)


def _check_digests(remote: RemoteBundle, files: dict[str, RemoteFile], folder: Path) -> None:
    for name in sorted(set(files) & set(remote.manifest.files) - {CARD_FILE}):
        found, listed = hash_file(folder / name), remote.manifest.files[name].sha256
        if found != listed:
            raise HubMismatch(
                f"{remote} was changed: `{name}` has the digest `{found}`, its manifest lists `{listed}`; "
                "nothing was kept",
                hint="pull an earlier revision, such as the tag that `push` set",
            )


def _verify(
    folder: Path, remote: RemoteBundle, progress: Progress
) -> tuple[VerificationRecord, VerificationRecord]:
    """Verify the bundle; return the record that came with it, and the one of this machine."""
    claimed = require_source_record(Bundle(folder), str(remote), hint=_NO_RECORD)
    record = verify_bundle(folder, level=Level.INTEGRITY, progress=progress)
    if record.outcome is not Outcome.PASS:
        reasons = "; ".join((*record.problems, *record.unchecked)[:5])
        raise BundleRefused(f"{remote} does not verify here ({record.outcome}): {reasons}")
    return claimed, record
