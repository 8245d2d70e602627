"""``remove``, ``restore`` and ``trash``: out of the catalog, and back."""

from __future__ import annotations

import sys

import click
from click.shell_completion import CompletionItem

from ...schemas.errors import NotInCatalog, StillInUse, UsageError
from ...schemas.names import CatalogSource
from ..catalog.records import MAX_TRASH_DAYS, TRASH_DAYS, Kind, TrashedVersion
from ..face import Registry
from ..workflows.store_upkeep import Removed
from .failures import REFUSED
from .groups import examples
from .json_output import print_json
from .output import count, describe_bytes, escape, print_line, print_remark
from .parameters import CatalogSourceType, format_option, pass_registry, read_catalog, wide_option
from .tables import EMPTY, Column, number, print_table

_COLUMNS = (
    Column("NAME"),
    Column("KIND", gives_way=3),
    number("IN STORE", 2),
    Column("REMOVED", gives_way=4),
    Column("BY", gives_way=5),
    Column("KEPT UNTIL"),
)


class TrashedSourceType(CatalogSourceType):
    """``NAME`` or ``NAME@3`` of what is in the trash."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the names and versions in the trash that begin so."""
        nothing: tuple[TrashedVersion, ...] = ()
        found = read_catalog(ctx, lambda catalog: catalog.list_trash(), default=nothing)
        names = dict.fromkeys(text for each in found for text in (each.name, str(each.source)))
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@click.command(
    "remove", epilog=examples("remove summarise@2", "remove summarise --yes", "remove summarise --for-good")
)
@click.argument("source", metavar="NAME[@VERSION|@ALIAS]", type=CatalogSourceType())
@click.option(
    "--keep",
    "keep_days",
    metavar="DAYS",
    type=click.IntRange(1, MAX_TRASH_DAYS),
    help=f"How long it can be restored. Default: {TRASH_DAYS} days.",
)
@click.option("--for-good", is_flag=True, help="Delete it at once with its bytes, from the trash, too.")
@click.option("--yes", is_flag=True, help="Do not ask; without a terminal on stdin nothing is asked either.")
@pass_registry
@click.pass_context
def command(
    context: click.Context,
    registry: Registry,
    source: CatalogSource,
    *,
    keep_days: int | None,
    for_good: bool,
    yes: bool,
) -> None:
    """Move a version, or every version of a name, to the trash.

    Its name is free again at once. `restore` brings it back with its tags and aliases, until `store gc`
    deletes it and its bytes after its days. Refused while a bundle uses the adapter. Of a bundle only the
    record is removed; its folder stays.
    """
    if for_good and keep_days is not None:
        raise UsageError("`--keep` is of what can be restored, expected it without `--for-good`")
    what = _describe(registry, source, for_good=for_good)
    question = f"Delete {escape(what)} for good?" if for_good else f"Remove {escape(what)}?"
    if not yes and sys.stdin.isatty() and not click.confirm(question, err=True):
        print_remark("nothing was removed")
        context.exit(REFUSED)
    removed = registry.remove(source, keep_days=keep_days or TRASH_DAYS, for_good=for_good)
    for version in removed.removal.versions:
        print_line(f"removed: {version}")
    _print_rest(removed, source)


def _describe(registry: Registry, source: CatalogSource, *, for_good: bool) -> str:
    try:
        found = registry.find(source)
    except NotInCatalog:
        # What is in the trash can still be deleted.
        if for_good and any(each.name == source.name for each in registry.trash()):
            return str(source)
        raise
    is_one = source.version is not None or source.alias is not None
    return str(found.source) if is_one else f"every version of {found.name}"


def _print_rest(removed: Removed, source: CatalogSource) -> None:
    versions, expires_at = removed.removal.versions, removed.removal.expires_at
    if expires_at is not None:
        # In one removal of several, the name alone brings all of them back.
        back = versions[0] if len(versions) == 1 else source.name
        them = "it" if len(versions) == 1 else "them"
        print_remark(
            f"in the trash until {expires_at:%Y-%m-%d}: `meteora-registry restore {back}` brings {them} back"
        )
    if removed.kept:
        print_remark(f"note: the bytes stay where they are: {removed.kept}")
        if isinstance(removed.kept, StillInUse):
            print_remark(f"hint: {removed.kept.hint}")
    if removed.freed_bytes:
        print_remark(f"{describe_bytes(removed.freed_bytes)} set free")


@click.command("restore", epilog=examples("restore summarise@2", "restore summarise --as summarise-old"))
@click.argument("source", metavar="NAME[@VERSION]", type=TrashedSourceType())
@click.option("--as", "name", metavar="NEW", help="Bring it back as the next version of this name.")
@format_option
@pass_registry
def restore(registry: Registry, source: CatalogSource, *, name: str | None, as_json: bool) -> None:
    """Bring back what was removed.

    One version, or what the last removal of a name took, under its old name and number. The members of a
    bundle that were removed come back with it.
    """
    restored = registry.restore(source, name=name)
    if as_json:
        print_json(restored)
        return
    for version in (*restored.versions, *restored.members):
        print_line(f"restored: {version}")
    for alias in restored.aliases_elsewhere:
        print_remark(f"note: the alias {alias} points at another version by now, and stays there")
    for member in restored.unlinked:
        print_remark(f"note: the catalog no longer has its member {member}; the bundle has its numbers")


@click.command("trash", epilog=examples("trash", "trash --format json"))
@wide_option
@format_option
@pass_registry
def trash(registry: Registry, *, as_json: bool) -> None:
    """List what was removed and can be restored.

    IN STORE is what all its files take in the content store; `store gc` sets it free after the day.
    """
    found = registry.trash()
    if as_json:
        print_json({"trash": found})
    elif found:
        print_table(_COLUMNS, list(map(_row, found)), total=_total(found))
    else:
        print_remark("the trash is empty")


def _row(version: TrashedVersion) -> tuple[str, ...]:
    return (
        str(version.source),
        version.kind,
        describe_bytes(version.size_bytes) if version.size_bytes else EMPTY,
        f"{version.removed_at:%Y-%m-%d %H:%M} UTC",
        version.removed_by,
        f"{version.expires_at:%Y-%m-%d}",
    )


def _total(found: tuple[TrashedVersion, ...]) -> str:
    kinds: tuple[Kind, ...] = ("adapter", "bundle")
    counts = [count([each for each in found if each.kind == kind], kind) for kind in kinds]
    return ", ".join((*filter(None, counts), describe_bytes(sum(each.size_bytes for each in found))))
