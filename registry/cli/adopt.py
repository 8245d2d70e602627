"""``adopt``: a member of a pulled bundle under a name of one's own."""

from __future__ import annotations

import click

from ...bundle.saved import refuse_saved_model
from ...schemas.names import FolderSource, parse_catalog_source, parse_source
from ..face import Registry
from .groups import examples
from .json_output import print_json
from .output import print_line
from .parameters import format_option, pass_registry


@click.command("adopt", epilog=examples("adopt our-bundle:legal", "adopt our-bundle:legal@1 --name law"))
@click.argument("source", metavar="BUNDLE:MEMBER[@VERSION]")
@click.option("--name", help="What the catalog calls it. Default: what the bundle calls it.")
@format_option
@pass_registry
def command(registry: Registry, source: str, *, name: str | None, as_json: bool) -> None:
    """Give a member of a pulled bundle a name of your own.

    Until then it is BUNDLE:MEMBER and takes no name that an adapter of yours could have. Its origin and its
    licence stay claims of the bundle, until `verify --refetch` finds the same files there. A routed model
    that PEFT saved after training is made a bundle by `gate adopt`.
    """
    found = parse_source(source)
    if isinstance(found, FolderSource):
        refuse_saved_model(found.path)
    added = registry.adopt(parse_catalog_source(source), name=name)
    if as_json:
        print_json(added)
    else:
        print_line(f"{'adopted' if added.created else 'already there'}: {added.version.source} ({source})")
