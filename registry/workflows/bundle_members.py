"""The members of a bundle as the adapters that they were: taken out of it, inspected, and catalogued."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...bundle import Bundle
from ...bundle.member import QuotedMember
from ...files.scratch import Purpose, temporary_folder
from ...fuser.extraction import can_be_rewritten, extract_member
from ...inspection.adapter import inspect_adapter
from ...schemas.manifest import ManifestMember
from ...schemas.names import below, member_entry
from ..catalog.records import AdapterVersion, NewMember
from ..workspace import Workspace
from .additions import add_folder
from .bundle_folder import find_member


def refuse_broken_members(bundle: Bundle, members: Iterable[QuotedMember]) -> None:
    """Inspect some members of a bundle; those that cannot be rewritten are passed over.

    Raises:
        AdapterRefused: a member is broken.
    """
    for member in members:
        if can_be_rewritten(member):
            with _extracted(bundle, member.name) as folder:
                inspect_adapter(folder).require_sound(f"member `{member.name}` is broken")


def register_members(
    workspace: Workspace, folder: Path, bundle_name: str, claim: str
) -> tuple[NewMember, ...]:
    """Catalogue the members of a bundle that the catalog does not have, and return all of them.

    Args:
        workspace: whose catalog and store they come into.
        folder: the bundle.
        bundle_name: what the catalog calls it.
        claim: where the bundle came from, which claims the members' origins.
    """
    bundle, members = Bundle.open(folder), []
    for member in bundle.members:
        version, entry = None, member.entry
        # Nothing but its own word connects another one with an adapter of this catalog.
        if can_be_rewritten(member):
            version = find_member(workspace.catalog, entry) or _add_member(
                workspace, bundle, entry, member_entry(bundle_name, entry.name), claim
            )
        members.append(NewMember(member.name, version, entry.weights_sha256, entry.config_sha256))
    return tuple(members)


def _add_member(
    workspace: Workspace, bundle: Bundle, member: ManifestMember, name: str, claim: str
) -> AdapterVersion:
    """Catalogue a member, which can be rewritten, as the adapter it was.

    Its base is the one that its own config declares: another one would be the bundle's claim, and the catalog
    learns spellings from what is stated.
    """
    with _extracted(bundle, member.name) as folder:
        return add_folder(
            workspace,
            folder,
            name=name,
            origin=member.origin,
            license_name=member.license,
            claimed_by=claim,
        ).version


@contextmanager
def _extracted(bundle: Bundle, name: str) -> Iterator[Path]:
    """Yield the folder of an extracted member; it is not kept."""
    with temporary_folder(Purpose.MEMBER) as scratch:
        yield extract_member(bundle, name, below(scratch, name)).folder
