"""``remove``: adapters and bundles out of the catalog."""

from __future__ import annotations

import sys

import click

from ...schemas.errors import StillInUse
from ...schemas.names import CatalogSource
from ..face import Registry
from ..workflows.store_upkeep import remove_versions
from .failures import REFUSED
from .groups import examples
from .output import describe_bytes, escape, print_line, print_remark
from .parameters import CatalogSourceType, pass_registry


@click.command("remove", epilog=examples("remove summarise@2", "remove summarise --yes"))
@click.argument("source", metavar="NAME[@VERSION|@ALIAS]", type=CatalogSourceType())
@click.option("--yes", is_flag=True, help="Do not ask; without a terminal on stdin nothing is asked either.")
@pass_registry
@click.pass_context
def command(context: click.Context, registry: Registry, source: CatalogSource, *, yes: bool) -> None:
    """Remove a version, or every version of a name.

    The bytes that nothing else uses go with it. Refused while a bundle uses the adapter. Of a bundle
    only the record is removed; its folder stays.
    """
    found = registry.find(source)
    is_one = source.version is not None or source.alias is not None
    what = str(found.source) if is_one else f"every version of {found.name}"
    if not yes and sys.stdin.isatty() and not click.confirm(f"Remove {escape(what)}?", err=True):
        print_remark("nothing was removed")
        context.exit(REFUSED)
    removed = remove_versions(registry, source)
    for version in removed.removal.versions:
        print_line(f"removed: {version}")
    if removed.kept:
        print_remark(f"note: the bytes stay where they are: {removed.kept}")
        if isinstance(removed.kept, StillInUse):
            print_remark(f"hint: {removed.kept.hint}")
    if removed.freed_bytes:
        print_remark(f"{describe_bytes(removed.freed_bytes)} set free")
