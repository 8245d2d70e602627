"""``tag`` and ``alias``: words that people attach to versions."""

from __future__ import annotations

import click

from ...schemas.names import CatalogSource
from ..face import Registry
from .groups import examples
from .output import print_line
from .parameters import CatalogSourceType, pass_registry


@click.command("tag", epilog=examples("tag summarise@2 candidate", "tag summarise candidate --remove"))
@click.argument("source", metavar="NAME[@VERSION|@ALIAS]", type=CatalogSourceType())
@click.argument("tags", metavar="TAG...", nargs=-1, required=True)
@click.option("--remove", is_flag=True, help="Take the tags away instead.")
@pass_registry
def tag(registry: Registry, source: CatalogSource, tags: tuple[str, ...], *, remove: bool) -> None:
    """Attach tags to a version.

    To the latest, unless another is named.
    """
    version = registry.find(source).source
    changed = registry.catalog.change_tags(version, **{"remove" if remove else "add": tags})
    print_line(f"{version}: {', '.join(changed) or 'no tags'}")


@click.command("alias", epilog=examples("alias summarise@2 champion", "alias summarise champion --remove"))
@click.argument("source", metavar="NAME[@VERSION|@ALIAS]", type=CatalogSourceType())
@click.argument("alias")
@click.option("--remove", is_flag=True, help="Delete the alias instead.")
@pass_registry
def alias(registry: Registry, source: CatalogSource, alias: str, *, remove: bool) -> None:
    """Point an alias at a version.

    From then on NAME@ALIAS means that version: the latest, unless another is named.
    """
    if remove:
        registry.catalog.remove_alias(source.name, alias)
        print_line(f"removed: {source.name}@{alias}")
    else:
        print_line(f"{source.name}@{alias}: {registry.catalog.set_alias(source, alias)}")
