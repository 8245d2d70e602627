"""``push``: a verified bundle, or a catalogued adapter, becomes one commit on the Hub.

Everything is checked before anything is sent, all of it goes into one commit on top of the commit that
was looked at, and afterwards the Hub's own list of files is compared with the digests here. If another push
comes in between, the Hub refuses this one, so two pushes never mix.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...bundle import Bundle
from ...bundle.card_sections import is_same_card
from ...bundle.signature import COVERED
from ...bundle.signers import require_signing
from ...files.progress import Progress, silent
from ...files.reading import real_path
from ...files.scratch import Purpose, temporary_folder
from ...schemas.bundle import CARD_FILE, MANIFEST_FILE, MAX_CARD_BYTES, SIGNATURE_FILE, is_bundle_file
from ...schemas.errors import (
    HubConflict,
    HubMismatch,
    HubRefused,
    HubUnavailable,
    InvalidDocument,
    UsageError,
)
from ...schemas.manifest import MAX_MANIFEST_BYTES, Manifest
from ...schemas.names import CatalogSource, HubSource, check_repository, parse_path_or_source
from ...schemas.signers import SignedBy, SigningKey
from ..catalog.catalog import Catalog
from ..catalog.records import AdapterVersion
from ..hub.client import Hub
from ..hub.download import read_small_file
from ..hub.listing import FileDigests, Listing, RemoteFile
from ..workspace import StrPath, Workspace
from .bundle_folder import find_bundle_folder
from .uploads import Upload, adapter_upload, bundle_upload, read_examples

_PAUSES_SECONDS = (1.0, 2.0, 4.0)
_SHORT = 12


@dataclass(frozen=True, slots=True)
class Pushed:
    """The result of a push; ``commit`` is None after a dry run for a repository that does not exist yet.

    ``added`` and ``deleted`` are empty when the repository had the same files already; ``added_bytes`` is the
    total size of what was added; ``signed_by`` is who signed the bundle for this push.
    """

    repository: str
    commit: str | None
    tag: str | None
    pull_request: str | None
    created: bool
    added: tuple[str, ...]
    deleted: tuple[str, ...]
    added_bytes: int
    signed_by: SignedBy | None


@dataclass(frozen=True, slots=True)
class PushOptions:
    """``private`` holds for a repository that is made; ``tag`` is used in place of the upload's own.

    ``overwrite_card`` publishes a bundle's card as it is here, whatever was edited here or there; a bundle is
    signed with ``sign``. ``examples`` names a file of prompts and answers for a bundle's card.
    """

    private: bool = False
    as_pull_request: bool = False
    dry_run: bool = False
    tag: str | None = None
    overwrite_card: bool = False
    sign: SigningKey | None = None
    examples: Path | None = None


def publish(
    workspace: Workspace,
    source: StrPath,
    repository: str,
    options: PushOptions,
    *,
    progress: Progress = silent,
) -> Pushed:
    """Push a bundle or a catalogued adapter, and note it in the catalog.

    Args:
        workspace: its catalog is asked when ``source`` is a catalogued name.
        source: a bundle's folder, or a catalogued bundle or adapter.
        repository: ``org/name`` on the Hub.
        options: how it is pushed.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        UsageError, NotInCatalog, BundleRefused, InvalidDocument, SourceUnreadable, StoreDamaged: as
            ``open_upload``.
        HubConflict, HubRefused, HubMismatch, HubUnavailable: as ``push``.
    """
    check_repository(repository)
    if options.sign is not None:
        _check_can_sign(options.sign, options)
    with temporary_folder(Purpose.PUSH) as scratch:
        noted, upload = open_upload(workspace, source, scratch, options, progress=progress)
        pushed = push(workspace.hub, upload, repository, options)
    if not options.dry_run:
        workspace.note(lambda catalog: note_push(catalog, noted, pushed))
    return pushed


def _check_can_sign(by: SigningKey, options: PushOptions) -> None:
    """Refuse, before anything is read, what cannot end in a signature."""
    if options.dry_run:
        raise UsageError("a dry run signs nothing", hint="leave out `--sign` or `--dry-run`")
    require_signing()
    from ...bundle.signing import check_key

    check_key(by)


def open_upload(
    workspace: Workspace,
    source: StrPath,
    scratch: Path,
    options: PushOptions,
    *,
    progress: Progress = silent,
) -> tuple[CatalogSource | Path, Upload]:
    """Return what is pushed, for ``note_push``, and its upload.

    Args:
        workspace: its catalog is asked when ``source`` is a catalogued name.
        source: a bundle's folder, or a catalogued bundle or adapter.
        scratch: an empty folder that is kept until the push is done.
        options: of the push: what of a changed card, and who signs.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        UsageError: it is a repository on the Hub.
        NotInCatalog: the version is not catalogued.
        BundleRefused, InvalidDocument, SourceUnreadable, StoreDamaged: it cannot be pushed.
    """
    parsed = parse_path_or_source(source)
    if isinstance(parsed, HubSource):
        raise UsageError(f"`{source}` is a repository on the Hub, expected a folder or a catalogued name")
    noted: CatalogSource | None = None
    if isinstance(parsed, CatalogSource):
        version = workspace.catalog.find_any(parsed)
        if isinstance(version, AdapterVersion):
            if options.examples is not None:
                raise UsageError(
                    f"`{version.source}` is an adapter, and its card is its own `{CARD_FILE}`",
                    hint="leave out `--examples`, and put them into that file",
                )
            if options.sign is not None:
                raise UsageError(
                    f"`{version.source}` is an adapter, and bundles alone are signed",
                    hint="leave out `--sign`",
                )
            return version.source, adapter_upload(workspace.store, version, scratch, progress=progress)
        noted = version.source
    folder = find_bundle_folder(workspace, source)
    examples = () if options.examples is None else read_examples(options.examples)
    return noted or folder, bundle_upload(
        folder,
        scratch=scratch,
        workspace=workspace,
        examples=examples,
        overwrite_card=options.overwrite_card,
        sign=options.sign,
        progress=progress,
    )


def push(hub: Hub, upload: Upload, repository: str, options: PushOptions) -> Pushed:
    """Make the repository hold exactly the upload, by one commit.

    Raises:
        HubConflict: another push came in between; nothing of this one was committed.
        HubRefused: not permitted, or the repository holds something else.
        HubMismatch: the Hub lists other digests than were sent.
        HubUnavailable: the Hub did not answer; nothing was committed unless the message states so.
    """
    found = hub.find_repository(repository)
    if found is None and options.dry_run:
        add = tuple(sorted(upload.files))
        return Pushed(repository, None, upload.tag, None, True, add, (), upload.size_of(add), None)
    if found is None:
        hub.create_repository(repository, private=options.private)
    elif options.private and not found[1]:
        raise HubRefused(
            f"`{repository}` exists and is public, so `--private` would not hold; nothing was pushed",
            hint="make it private in its settings, or choose another name",
        )
    head = found[0] if found else hub.resolve(repository)
    listing = hub.list_files(repository, head)
    _check_owner(listing, upload)
    add, delete = find_changes(listing, upload)
    if upload.holds_bundle and CARD_FILE in add and not options.overwrite_card:
        _require_unedited_card(hub, listing)
    size_bytes = upload.size_of(add)
    tag: str | None = options.tag or upload.tag
    _check_tag(hub, repository, options, head if not (add or delete) else None)
    commit, pull_request = head, None
    if options.dry_run:
        return Pushed(repository, head, tag, None, found is None, add, delete, size_bytes, None)
    if add or delete:
        commit, pull_request = _commit(hub, upload, listing, add, delete, options)
        _check_result(hub.list_files(repository, commit), upload)
    if options.as_pull_request:
        tag = None
    else:
        hub.tag(repository, options.tag or upload.tag, commit)
    return Pushed(
        repository, commit, tag, pull_request, found is None, add, delete, size_bytes, upload.signed_by
    )


def note_push(catalog: Catalog, source: CatalogSource | Path, pushed: Pushed) -> tuple[CatalogSource, ...]:
    """Record a push in the catalog, and return the versions that were published.

    Args:
        catalog: gets an event for each.
        source: a version, or the folder of a bundle, which need not be catalogued.
        pushed: the result; nothing is recorded if it changed nothing.

    Raises:
        NotInCatalog: the version is not catalogued.
    """
    if pushed.commit is None or not (pushed.added or pushed.deleted):
        return ()
    if isinstance(source, Path):
        versions = catalog.find_bundles_in(real_path(source), Bundle(source).manifest_sha256)
    else:
        versions = (source,)
    details = {"repository": pushed.repository, "commit": pushed.commit}
    details |= {"tag": pushed.tag} if pushed.tag else {}
    details |= {"pull_request": pushed.pull_request} if pushed.pull_request else {}
    if pushed.signed_by is not None:
        for version in versions:
            catalog.record_signature(version, "sign", pushed.signed_by)
    for version in versions:
        catalog.record_push(version, **details)
    return versions


def find_changes(listing: Listing, upload: Upload) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the paths to add and the paths to delete, so that the repository has exactly the upload.

    Beside a bundle, files that no bundle has are left alone, and so is a signature of what it covers still.
    """
    remote = {file.path: file for file in listing.own_files}
    add = tuple(sorted(path for path, own in upload.digests.items() if not _is_there(remote.get(path), own)))
    surplus = sorted(remote.keys() - upload.files.keys())
    if not upload.holds_bundle:
        return add, tuple(surplus)
    is_stale = not set(add).isdisjoint(COVERED)
    return add, tuple(
        path for path in surplus if is_bundle_file(path) or (path == SIGNATURE_FILE and is_stale)
    )


def _is_there(file: RemoteFile | None, own: FileDigests) -> bool:
    return file is not None and own.are_those_of(file)


def _check_owner(listing: Listing, upload: Upload) -> None:
    if listing.is_bundle and upload.holds_bundle:
        return
    strangers = sorted({file.path for file in listing.own_files} - upload.replaces - {CARD_FILE})
    if strangers or listing.is_bundle:
        shown = ", ".join(f"`{path}`" for path in strangers[:5]) + (", ..." if len(strangers) > 5 else "")
        raise HubRefused(
            f"`{listing.repository}` holds something else: {shown}; nothing was pushed",
            hint="choose a repository of its own",
        )


def _require_unedited_card(hub: Hub, listing: Listing) -> None:
    """Refuse to replace a card that was edited on the Hub: it is not the one that its manifest lists."""
    card, manifest = listing.find(CARD_FILE), listing.find(MANIFEST_FILE)
    if card is None or manifest is None:
        return
    with suppress(InvalidDocument, HubRefused):
        text = read_small_file(hub, listing, card, max_bytes=MAX_CARD_BYTES)
        listed = Manifest.read(read_small_file(hub, listing, manifest, max_bytes=MAX_MANIFEST_BYTES))
        if CARD_FILE in listed.files and is_same_card(text, listed.files[CARD_FILE].sha256):
            return
    raise HubRefused(
        f"the card of `{listing.repository}` was edited on the Hub; nothing was pushed",
        hint="copy what is to stay into the bundle's `README.md`, and push with `--overwrite-card`",
    )


def _check_tag(hub: Hub, repository: str, options: PushOptions, head: str | None) -> None:
    """Refuse a requested tag that is at another commit; the default tag is named after the content."""
    if options.tag is None or options.as_pull_request:
        return
    there = hub.list_tags(repository).get(options.tag)
    if there is not None and there != head:
        raise HubRefused(
            f"`{repository}` has the tag `{options.tag}` at `{there[:_SHORT]}` already; nothing was pushed",
            hint="choose another with `--tag`",
        )


def _commit(
    hub: Hub,
    upload: Upload,
    listing: Listing,
    add: tuple[str, ...],
    delete: tuple[str, ...],
    options: PushOptions,
) -> tuple[str, str | None]:
    """Make one commit; where the answer was lost, look in the repository whether it was made."""
    for pause in (*_PAUSES_SECONDS, None):
        try:
            return hub.commit(
                listing.repository,
                add={path: upload.files[path] for path in add},
                delete=delete,
                parent=listing.commit,
                message=upload.title,
                as_pull_request=options.as_pull_request,
            )
        except (HubUnavailable, HubConflict) as error:
            if options.as_pull_request:
                error.hint = "look at the repository's pull requests before you run it again"
                raise
            now = hub.resolve(listing.repository)
            if now == listing.commit:
                if pause is None or isinstance(error, HubConflict):
                    raise
                time.sleep(pause)
                continue
            if find_changes(hub.list_files(listing.repository, now), upload) == ((), ()):
                return now, None
            raise HubConflict(
                f"another push to `{listing.repository}` came in between: it was at "
                f"`{listing.commit[:_SHORT]}` and is at `{now[:_SHORT]}`; nothing of this push was committed",
                hint="look at what it changed; the same command again makes a commit on top of it",
            ) from error
    raise AssertionError("the last attempt returns or raises")


def _check_result(listing: Listing, upload: Upload) -> None:
    add, delete = find_changes(listing, upload)
    if add or delete:
        wrong = ", ".join(f"`{path}`" for path in (*add, *delete))
        raise HubMismatch(
            f"`{listing.repository}@{listing.commit}` does not hold what was pushed: {wrong}; "
            "the commit is there and was not tagged",
            hint="run `meteora-registry verify` on the bundle here, then push again",
        )
