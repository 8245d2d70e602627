"""``adopt``: a member of a pulled bundle under a name of one's own."""

from __future__ import annotations

import click

from ...schemas.names import CatalogSource
from ..face import Registry
from .groups import examples
from .json_output import print_json
from .output import print_line
from .parameters import CatalogSourceType, format_option, pass_registry


@click.command("adopt", epilog=examples("adopt our-bundle:legal", "adopt our-bundle:legal@1 --name law"))
@click.argument("source", metavar="BUNDLE:MEMBER[@VERSION]", type=CatalogSourceType())
@click.option("--name", help="What the catalog calls it. Default: what the bundle calls it.")
@format_option
@pass_registry
def command(registry: Registry, source: CatalogSource, *, name: str | None, as_json: bool) -> None:
    """Give a member of a pulled bundle a name of your own.

    Until then it is BUNDLE:MEMBER and takes no name that an adapter of yours could have. Its origin and its
    licence stay claims of the bundle, until `verify --refetch` finds the same files there.
    """
    added = registry.adopt(source, name=name)
    if as_json:
        print_json(added)
    else:
        print_line(f"{'adopted' if added.created else 'already there'}: {added.version.source} ({source})")
