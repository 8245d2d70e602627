"""``push``: a verified bundle, or a catalogued adapter, becomes one commit on the Hub.

Everything is checked before anything is sent, all of it goes into one commit on top of the commit that
was looked at, and afterwards the Hub's own list of files is compared with the digests here. Somebody
else's push in between makes the Hub refuse ours, so two pushes never mix.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...files.digests import hash_file
from ...files.progress import Bytes, Progress, Step, silent
from ...files.reading import real_path
from ...schemas.bundle import CARD_FILE, MANIFEST_FILE
from ...schemas.errors import HubConflict, HubMismatch, HubRefused, HubUnavailable
from ...schemas.names import CatalogSource
from ..catalog.catalog import Catalog
from ..hub.client import Hub
from ..hub.listing import FileDigests, Listing, RemoteFile, digest_file

_PAUSES_SECONDS = (1.0, 2.0, 4.0)
_SHORT = 12


@dataclass(frozen=True, slots=True)
class Upload:
    """What is to lie in the repository: ``files`` by their paths there, with their digests.

    A repository that holds other files than ``replaces`` is somebody else's, unless the upload
    ``holds_bundle`` and a bundle is what lies there.
    """

    title: str
    tag: str
    files: Mapping[str, Path]
    digests: Mapping[str, FileDigests]
    replaces: frozenset[str]
    holds_bundle: bool


@dataclass(frozen=True, slots=True)
class Pushed:
    """What came of a push; ``commit`` is None after a dry run for a repository that is not there yet.

    ``added`` and ``deleted`` are empty when the repository had these very files.
    """

    repository: str
    commit: str | None
    tag: str | None
    pull_request: str | None
    created: bool
    added: tuple[str, ...]
    deleted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PushOptions:
    """``private`` holds for a repository that is made; ``tag`` is used in place of the upload's own."""

    private: bool = False
    as_pull_request: bool = False
    dry_run: bool = False
    tag: str | None = None


def digest_files(files: Mapping[str, Path], progress: Progress = silent) -> dict[str, FileDigests]:
    """The digests of local files, by the same keys."""
    step = Step("hashing", Bytes(sum(path.stat().st_size for path in files.values())), progress)
    return {name: digest_file(path, step) for name, path in files.items()}


def push(hub: Hub, upload: Upload, repository: str, options: PushOptions) -> Pushed:
    """Make the repository hold exactly the upload, by one commit.

    Raises:
        HubConflict: somebody pushed in between; nothing of ours was committed.
        HubRefused: not permitted, or the repository holds something else.
        HubMismatch: the Hub lists other digests than were sent.
        HubUnavailable: the Hub did not answer; nothing was committed unless the message says so.
    """
    found = hub.find_repository(repository)
    if found is None and options.dry_run:
        return Pushed(repository, None, upload.tag, None, True, tuple(sorted(upload.files)), ())
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
    tag = options.tag or upload.tag
    _check_tag(hub, repository, options, head if not (add or delete) else None)
    commit, pull_request = head, None
    if options.dry_run:
        return Pushed(repository, head, tag, None, found is None, add, delete)
    if add or delete:
        commit, pull_request = _commit(hub, upload, listing, add, delete, options)
        _check_result(hub.list_files(repository, commit), upload)
    if options.as_pull_request:
        return Pushed(repository, commit, None, pull_request, found is None, add, delete)
    hub.tag(repository, tag, commit)
    return Pushed(repository, commit, tag, None, found is None, add, delete)


def note_push(catalog: Catalog, source: CatalogSource | Path, pushed: Pushed) -> tuple[CatalogSource, ...]:
    """The versions of which the catalog now says that they were published.

    Args:
        catalog: gets an event for each.
        source: a version, or the folder of a bundle, which need not be catalogued.
        pushed: what came of it; nothing is noted if it changed nothing.

    Raises:
        NotInCatalog: there is no such version.
    """
    if pushed.commit is None or not (pushed.added or pushed.deleted):
        return ()
    if isinstance(source, Path):
        manifest_sha256 = hash_file(source / MANIFEST_FILE)
        versions = catalog.find_bundles_in(real_path(source), manifest_sha256)
    else:
        versions = (source,)
    details = {"repository": pushed.repository, "commit": pushed.commit}
    details |= {"tag": pushed.tag} if pushed.tag else {}
    details |= {"pull_request": pushed.pull_request} if pushed.pull_request else {}
    for version in versions:
        catalog.record_push(version, **details)
    return versions


def find_changes(listing: Listing, upload: Upload) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The paths to add and the paths to delete, so that the repository holds exactly the upload."""
    remote = {file.path: file for file in listing.own_files}
    add = tuple(sorted(path for path, own in upload.digests.items() if not _is_there(remote.get(path), own)))
    return add, tuple(sorted(set(remote) - set(upload.files)))


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


def _check_tag(hub: Hub, repository: str, options: PushOptions, head: str | None) -> None:
    """Refuse a tag that a person named and that stands elsewhere; ours names the content itself."""
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
    """One commit; where the answer was lost, the repository itself says whether it was made."""
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
                f"somebody pushed to `{listing.repository}` in between: it was at "
                f"`{listing.commit[:_SHORT]}` and is at `{now[:_SHORT]}`; nothing of this push was committed",
                hint="look at what they changed; the same command again makes a commit on top of theirs",
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
