"""``push``: a verified bundle, or a catalogued adapter, becomes one commit on the Hub.

Everything is checked before anything is sent, all of it goes into one commit on top of the commit that
was looked at, and afterwards the Hub's own list of files is compared with the digests here. If another push
comes in between, the Hub refuses this one, so two pushes never mix.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from ...bundle import Bundle
from ...bundle.documents import check_documents
from ...bundle.files import check_card, check_listed
from ...bundle.signature import COVERED, check_covers, has_signature, read_covered, read_signature
from ...bundle.signers import require_signing
from ...files.progress import Bytes, Progress, Step, silent
from ...files.reading import real_path
from ...files.scratch import Purpose, temporary_folder
from ...fuser.licenses import combine_licenses
from ...schemas.base_name import present_name
from ...schemas.bundle import (
    CARD_FILE,
    CONFIG_FILE,
    MANIFEST_FILE,
    MAX_CARD_BYTES,
    SIGNATURE_FILE,
    VERIFICATION_FILE,
    WEIGHTS_FILE,
    is_bundle_file,
)
from ...schemas.digest import Digest
from ...schemas.errors import (
    BundleRefused,
    HubConflict,
    HubMismatch,
    HubRefused,
    HubUnavailable,
    InvalidDocument,
    StoreDamaged,
    UsageError,
)
from ...schemas.manifest import MAX_MANIFEST_BYTES, Manifest
from ...schemas.names import (
    CatalogSource,
    HubSource,
    below,
    check_file_name,
    check_repository,
    is_repository,
    parse_path_or_source,
)
from ...schemas.signers import SignedBy, SigningKey
from ...schemas.verification import Level
from ..catalog.catalog import Catalog
from ..catalog.records import AdapterVersion
from ..dependencies import has_torch
from ..hub.client import Hub
from ..hub.download import read_small_file
from ..hub.listing import FileDigests, Listing, RemoteFile, digest_file
from ..store import Store
from ..workspace import StrPath, Workspace
from .additions import TEXT_FILES
from .bundle_folder import find_bundle_folder, require_source_record

_PAUSES_SECONDS = (1.0, 2.0, 4.0)
_SHORT = 12
_SHOWN_PROBLEMS = 5
_VERIFY = "run `meteora-registry verify {folder} --level source --record` where the members' files are"


@dataclass(frozen=True, slots=True)
class Upload:
    """The content of a repository after the push: ``files`` by their paths there, with their digests.

    A repository with other files than ``replaces`` belongs to something else, unless the upload
    ``holds_bundle`` and the repository has a bundle. ``signed_by`` is who signs it in this push.
    """

    title: str
    tag: str
    files: Mapping[str, Path]
    digests: Mapping[str, FileDigests]
    replaces: frozenset[str]
    holds_bundle: bool
    signed_by: SignedBy | None = None

    def size_of(self, paths: Iterable[str]) -> int:
        """Return the total size in bytes of some of its files."""
        return sum(self.digests[path].size_bytes for path in paths)


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
    signed with ``sign``.
    """

    private: bool = False
    as_pull_request: bool = False
    dry_run: bool = False
    tag: str | None = None
    overwrite_card: bool = False
    sign: SigningKey | None = None


def digest_files(files: Mapping[str, Path], progress: Progress = silent) -> dict[str, FileDigests]:
    """Return the digests of local files, by the same keys."""
    step = Step("hashing", Bytes(sum(path.stat().st_size for path in files.values())), progress)
    return {name: digest_file(path, step) for name, path in files.items()}


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
        if CARD_FILE in listed.files and listed.files[CARD_FILE].sha256 == Digest.of_bytes(text):
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
            if options.sign is not None:
                raise UsageError(
                    f"`{version.source}` is an adapter, and bundles alone are signed",
                    hint="leave out `--sign`",
                )
            return version.source, adapter_upload(workspace.store, version, scratch, progress=progress)
        noted = version.source
    folder = find_bundle_folder(workspace, source)
    return noted or folder, bundle_upload(
        folder,
        workspace=workspace,
        overwrite_card=options.overwrite_card,
        sign=options.sign,
        progress=progress,
    )


def bundle_upload(
    folder: Path,
    *,
    workspace: Workspace | None = None,
    overwrite_card: bool = False,
    sign: SigningKey | None = None,
    progress: Progress = silent,
) -> Upload:
    """Return the files of a bundle that has a record of level `source` and is intact.

    Args:
        folder: the bundle.
        workspace: where torch is not installed, its catalog must have a verification of this manifest that
            was made here.
        overwrite_card: publish the card as it is, if it was changed.
        sign: who signs it, once it was found intact; the signature stays in the folder.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        BundleRefused: its record is not that of a verification of this bundle that passed at level `source`,
            a file differs from the manifest, the bundle is not intact, or its signature is for other files.
        AdapterRefused: a member is broken.
        InvalidDocument: the manifest or the record is damaged.
        SourceUnreadable: a file cannot be read.
    """
    bundle = Bundle(folder)
    manifest, manifest_sha256 = bundle.manifest, bundle.manifest_sha256
    require_source_record(bundle, f"`{folder}`", hint=_VERIFY.format(folder=folder))
    listed = {*manifest.files, MANIFEST_FILE, VERIFICATION_FILE}
    if problems := check_listed(manifest):
        raise BundleRefused(f"`{folder}`: {problems[0]}", hint="fuse the bundle again")
    if (folder / CARD_FILE).is_file():
        listed.add(CARD_FILE)
    elif overwrite_card:
        listed.discard(CARD_FILE)
    files = {name: below(folder, name) for name in sorted(listed)}
    if missing := [name for name, path in files.items() if not path.is_file() or path.is_symlink()]:
        raise BundleRefused(f"`{folder}` lacks `{missing[0]}`, which its manifest lists")
    digests = digest_files(files, progress)
    _compare_with_manifest(folder, manifest, digests, overwrite_card=overwrite_card)
    _require_intact(bundle, workspace, progress)
    signed_by = None if sign is None else _sign(folder, sign)
    if has_signature(folder):
        _check_signature_is_for(folder)
        files[SIGNATURE_FILE] = below(folder, SIGNATURE_FILE)
        digests[SIGNATURE_FILE] = digest_file(files[SIGNATURE_FILE])
    names = ", ".join(member.name for member in manifest.members)
    return Upload(
        title=f"MeteoRA bundle {manifest_sha256.short} of {names}"[:200],
        tag=f"meteora-{manifest_sha256.short}",
        files=files,
        digests=digests,
        replaces=frozenset(),
        holds_bundle=True,
        signed_by=signed_by,
    )


def _check_can_sign(by: SigningKey, options: PushOptions) -> None:
    """Refuse, before anything is read, what cannot end in a signature."""
    if options.dry_run:
        raise UsageError("a dry run signs nothing", hint="leave out `--sign` or `--dry-run`")
    require_signing()
    from ...bundle.signing import check_key

    check_key(by)


def _sign(folder: Path, by: SigningKey) -> SignedBy:
    from ...bundle.signing import sign_bundle

    return sign_bundle(folder, by)


def _check_signature_is_for(folder: Path) -> None:
    """Check that a signature in a bundle's folder states its files; whose it is, those who pull decide."""
    what = f"`{folder}`"
    try:
        check_covers(read_signature(folder, what), read_covered(folder, what), what)
    except BundleRefused as error:
        error.hint = f"sign it again with `--sign`, or delete its `{SIGNATURE_FILE}`"
        raise


def _require_intact(bundle: Bundle, workspace: Workspace | None, progress: Progress) -> None:
    """Check that the bundle is intact: with torch here and now, without it by what this catalog found.

    With torch the members are inspected, too, as `pull` does: it would refuse a broken one.
    """
    can_compute = has_torch()
    if can_compute:
        from ...fuser.verifier import verify_bundle

        record = verify_bundle(bundle.folder, level=Level.INTEGRITY, progress=progress)
        problems = [*record.problems, *record.unchecked]
    else:
        problems = check_documents(bundle)
    if problems:
        raise BundleRefused(
            f"`{bundle.folder}` is not intact: {'; '.join(problems[:_SHOWN_PROBLEMS])}",
            hint="see all of it with `meteora-registry verify`",
        )
    if can_compute:
        from .bundle_members import refuse_broken_members

        refuse_broken_members(bundle, bundle.members)
    elif not (workspace and workspace.catalog.is_verified(bundle.manifest_sha256)):
        raise BundleRefused(
            f"the numbers of `{bundle.folder}` were never verified in this catalog, and computing with them "
            "needs torch, which is not installed",
            hint="pip install 'meteora-registry[runtime]', or push from where the bundle was verified",
        )


def adapter_upload(
    store: Store, version: AdapterVersion, scratch: Path, *, progress: Progress = silent
) -> Upload:
    """Return the files of a catalogued adapter; a short card is written into ``scratch`` if it has none.

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


def _compare_with_manifest(
    folder: Path, manifest: Manifest, digests: Mapping[str, FileDigests], *, overwrite_card: bool
) -> None:
    if not overwrite_card and (changes := check_card(folder, manifest)):
        raise BundleRefused(
            f"`{folder}`: {changes[0]}; nothing was pushed",
            hint="`--overwrite-card` publishes it as it is",
        )
    for name, listed in manifest.files.items():
        if name != CARD_FILE and digests[name].sha256 != listed.sha256:
            raise BundleRefused(
                f"`{name}` in `{folder}` was changed: it has the digest `{digests[name].sha256}`, "
                f"the manifest lists `{listed.sha256}`",
                hint="fuse the bundle again",
            )


def _card_of(version: AdapterVersion) -> str:
    facts: dict[str, object] = {"library_name": "peft", "tags": ["lora"]}
    base = version.base_model or version.base
    if base is not None and is_repository(present_name(base)):
        facts |= {"base_model": present_name(base), "base_model_relation": "adapter"}
    combined = combine_licenses([version.license])
    facts["license"] = combined.identifier
    if combined.name is not None:
        facts["license_name"] = combined.name
    rank = "unknown" if version.max_rank is None else version.max_rank
    return (
        f"---\n{yaml.safe_dump(facts, allow_unicode=False)}---\n\n# {version.name}\n\n"
        f"A LoRA adapter of rank {rank}, {version.weights_bytes} bytes, weights `{version.weights_sha256}`.\n"
    )
