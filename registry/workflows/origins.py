"""The members of a pulled bundle: fetched from the origins that it claims, and adopted under other names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...files.scratch import Purpose, temporary_folder
from ...fuser.fuse_member import MemberFiles
from ...inspection.card import parse_license
from ...schemas.bundle import CARD_FILE, CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from ...schemas.errors import HubMismatch, HubRefused, UsageError
from ...schemas.limits import MAX_ADAPTER_FILE_BYTES
from ...schemas.manifest import Manifest, ManifestMember
from ...schemas.names import MEMBER_MARK, CatalogSource, HubSource, below, check_name, parse_repository
from ..hub.client import Hub
from ..hub.download import download_files, read_small_file
from ..workspace import Workspace
from .adapter_copy import copy_adapter
from .additions import MAX_TEXT_BYTES, Addition, add_folder


@dataclass(frozen=True, slots=True)
class Refetched:
    """The files of members as they were fetched from their origins, by member name.

    ``licenses`` are those that the cards there state. ``notes`` name the members that were not fetched, and
    those of which the bundle claims another licence.
    """

    files: dict[str, MemberFiles]
    licenses: dict[str, str | None]
    notes: tuple[str, ...]


@contextmanager
def refetched(workspace: Workspace, manifest: Manifest) -> Iterator[Refetched]:
    """Yield the files of those members whose origin is on the Hub, fetched from there; nothing is kept.

    Only the repository, the commit and the folder that the manifest names are asked for.

    Raises:
        HubUnavailable: the Hub does not answer.
        HubMismatch: an origin has no such files, or weights of another size.
    """
    with temporary_folder(Purpose.VERIFY) as scratch:
        files, licenses, notes = {}, {}, []
        for member in manifest.members:
            try:
                files[member.name], stated = _fetch(workspace.hub, member, below(scratch, member.name))
                licenses[member.name] = stated
            except HubRefused as error:
                notes.append(f"member `{member.name}` was not fetched from its origin: {error.message}")
                continue
            if member.license not in (None, stated):
                found = f"`{stated}`" if stated else "none"
                notes.append(
                    f"the bundle claims the licence `{member.license}` for member `{member.name}`, its "
                    f"origin states {found}"
                )
        yield Refetched(files, licenses, tuple(notes))


def origin_of(member: ManifestMember) -> HubSource | None:
    """Return the repository at a commit that the manifest names; None if it names none."""
    if member.origin.kind != "hub":
        return None
    try:
        place = parse_repository(member.origin.location)
    except UsageError:
        return None
    is_pinned = place.revision is not None and place.revision == member.origin.commit
    return place if is_pinned else None


def _fetch(hub: Hub, member: ManifestMember, folder: Path) -> tuple[MemberFiles, str | None]:
    """Fetch a member's own files from its origin into a folder, and return its card's licence too."""
    place = origin_of(member)
    if place is None:
        raise HubRefused(f"`{member.origin}` is not a repository on the Hub at a commit")
    listing = hub.list_files(place.repository, hub.resolve(place.repository, place.revision))
    prefix = f"{place.subfolder.strip('/')}/" if place.subfolder else ""
    if listing.find(f"{prefix}{MANIFEST_FILE}") is not None:
        raise HubRefused(f"`{member.origin}` is a bundle, which it was taken out of")
    files = {}
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        file = listing.find(f"{prefix}{name}")
        # The config's size is not in the manifest, but its text is.
        size_bytes = member.weights_bytes if name == WEIGHTS_FILE else len(member.config_text.encode())
        if size_bytes > MAX_ADAPTER_FILE_BYTES:
            raise HubRefused(f"`{name}` of member `{member.name}` has {size_bytes} bytes, too many for one")
        if file is None or file.size_bytes != size_bytes:
            found = "does not exist" if file is None else f"has {file.size_bytes} bytes"
            raise HubMismatch(
                f"member `{member.name}` is not what `{member.origin}` has: `{prefix}{name}` {found} there, "
                f"the manifest has {size_bytes} bytes",
                hint="the bundle claims an origin that its member does not have",
            )
        files[name] = file
    folder.mkdir()
    download_files(hub, listing, files, folder, cache=below(folder, "cache"))
    fetched = MemberFiles(folder / CONFIG_FILE, folder / WEIGHTS_FILE, origin=str(member.origin))
    card = listing.find(f"{prefix}{CARD_FILE}")
    if card is None:
        return fetched, None
    return fetched, parse_license(read_small_file(hub, listing, card, max_bytes=MAX_TEXT_BYTES))


def confirm_origins(workspace: Workspace, manifest: Manifest, fetched: Refetched) -> None:
    """Record in the catalog that members were fetched from the origins that their bundle claims."""
    for member in manifest.members:
        if member.name in fetched.files:
            workspace.catalog.confirm_origin(
                member.weights_sha256,
                member.config_sha256,
                str(member.origin),
                fetched.licenses[member.name],
            )


def adopt_member(workspace: Workspace, source: CatalogSource, *, name: str | None = None) -> Addition:
    """Catalogue a member of a pulled bundle under a name of one's own; its claims stay claims.

    Args:
        workspace: whose catalog and store it is in.
        source: the member, ``bundle:member``.
        name: what it is called from now on; by default what the bundle calls it.

    Raises:
        NotInCatalog: there is no such member.
        UsageError: it is not the member of a bundle, or the name is malformed.
        AlreadyInCatalog: a bundle has the name.
        StoreDamaged: its bytes are missing or changed.
    """
    _, mark, member = source.name.partition(MEMBER_MARK)
    if not mark:
        raise UsageError(
            f"`{source}` is not a member of a pulled bundle, expected `bundle{MEMBER_MARK}member`",
            hint="see what there is with `meteora-registry list`",
        )
    wanted = check_name(name if name is not None else member)
    version = workspace.catalog.find(source)
    with temporary_folder(Purpose.MEMBER) as scratch:
        folder = below(scratch, member)
        copy_adapter(workspace.store, version, folder)
        return add_folder(
            workspace,
            folder,
            name=wanted,
            origin=version.origin,
            license_name=version.license,
            claimed_by=version.claimed_by,
        )
