"""``tag``: words attached to versions."""

from __future__ import annotations

import click

from ...schemas.names import CatalogSource
from ..catalog.catalog import Catalog
from ..home import Home
from .groups import examples
from .output import print_line
from .parameters import CatalogSourceType, pass_home


@click.command("tag", epilog=examples("tag summarise@2 candidate", "tag summarise candidate --remove"))
@click.argument("source", metavar="NAME[@VERSION|@ALIAS]", type=CatalogSourceType())
@click.argument("tags", metavar="TAG...", nargs=-1, required=True)
@click.option("--remove", is_flag=True, help="Take the tags away instead.")
@pass_home
def command(home: Home, source: CatalogSource, tags: tuple[str, ...], *, remove: bool) -> None:
    """Attach tags to a version.

    To the latest, unless another is named.
    """
    with Catalog.open(home) as catalog:
        version = catalog.find_any(source).source
        changed = catalog.change_tags(version, **{"remove" if remove else "add": tags})
    print_line(f"{version}: {', '.join(changed) or 'no tags'}")
