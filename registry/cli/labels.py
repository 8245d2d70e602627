"""``tag``, ``alias``, ``edit`` and ``rename``: what people call things, and what they state about them."""

from __future__ import annotations

import click

from ...schemas.errors import UsageError
from ...schemas.names import CatalogSource, parse_catalog_source
from ..face import Registry
from .groups import examples
from .output import print_facts, print_line
from .parameters import CatalogSourceType, complete_name, pass_registry


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


@click.command(
    "edit",
    epilog=examples(
        'edit summarise --owner "the search team"',
        'edit summarise --note "for tickets in English; see the wiki"',
        'edit summarise --note ""',
    ),
)
@click.argument("name", shell_complete=complete_name)
@click.option("--note", metavar="TEXT", help="What a reader should know; an empty text takes it away.")
@click.option("--owner", metavar="NAME", help="Whom to ask about it; an empty text takes it away.")
@pass_registry
def edit(registry: Registry, name: str, *, note: str | None, owner: str | None) -> None:
    """State a note or an owner of an adapter or a bundle.

    Each holds for all versions of the name. `show` prints both, `search` finds words in both, and no command
    publishes them.
    """
    if note is None and owner is None:
        raise UsageError("nothing to change", hint="state `--note TEXT`, `--owner NAME` or both")
    registry.edit(_name_of(name), note=note, owner=owner)
    found = registry.find(CatalogSource(name))
    print_facts([("name", name), ("owner", found.owner), ("note", found.note)])


@click.command("rename", epilog=examples("rename summarise tickets"))
@click.argument("name", shell_complete=complete_name)
@click.argument("new")
@pass_registry
def rename(registry: Registry, name: str, new: str) -> None:
    """Give an adapter or a bundle another name.

    Its versions, aliases, tags and records stay with it. Bundles that were fused of it call their member what
    they called it. Refused if anything has the new name, or had it for something else.
    """
    for version in registry.rename(_name_of(name), new):
        print_line(f"renamed: {name}@{version.version} is {version}")


def _name_of(text: str) -> str:
    source = parse_catalog_source(text)
    if source.version is not None or source.alias is not None:
        raise UsageError(
            f"`{source}` is one version, expected the name of all", hint=f"such as `{source.name}`"
        )
    return source.name
