"""``alias``: movable names for versions."""

from __future__ import annotations

import click

from ...schemas.names import CatalogSource
from ..catalog.catalog import Catalog
from ..home import Home
from .groups import examples
from .output import print_line
from .parameters import CatalogSourceType, pass_home


@click.command("alias", epilog=examples("alias summarise@2 champion", "alias summarise champion --remove"))
@click.argument("source", metavar="NAME[@VERSION|@ALIAS]", type=CatalogSourceType())
@click.argument("alias")
@click.option("--remove", is_flag=True, help="Delete the alias instead.")
@pass_home
def command(home: Home, source: CatalogSource, alias: str, *, remove: bool) -> None:
    """Point an alias at a version.

    From then on NAME@ALIAS means that version: the latest, unless another is named.
    """
    with Catalog.open(home) as catalog:
        if remove:
            catalog.remove_alias(source.name, alias)
            print_line(f"removed: {source.name}@{alias}")
        else:
            print_line(f"{source.name}@{alias}: {catalog.set_alias(source, alias)}")
