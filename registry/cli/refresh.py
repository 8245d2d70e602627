"""``refresh``: catalogued adapters that changed on the Hub."""

from __future__ import annotations

import click

from ...schemas.errors import MeteoraError
from ..face import Registry
from .failures import report_failure, worst_code
from .groups import examples
from .json_output import print_json
from .output import count, print_line, print_remark
from .parameters import complete_name, format_option, pass_registry, wide_option
from .tables import Column, print_table


@click.command("refresh", epilog=examples("refresh", "refresh summarise legal"))
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_name)
@wide_option
@format_option
@pass_registry
@click.pass_context
def command(context: click.Context, registry: Registry, names: tuple[str, ...], *, as_json: bool) -> None:
    """Show which catalogued adapters changed on the Hub.

    Also shows what changed. Each latest version that came from the Hub is compared with its repository's
    main branch. Nothing is recorded: `add` the repository again to make the next version. Exit code 0
    whatever changed.
    """
    from ..workflows.freshness import check_freshness, hub_versions

    codes, found = [], []
    versions = hub_versions(registry.catalog, names)
    for version in versions:
        try:
            found.append(check_freshness(registry, version))
        except MeteoraError as error:
            codes.append(report_failure(error))
    if as_json:
        print_json(found)
    elif found:
        print_table(
            (
                "ADAPTER",
                "STATE",
                Column("REPOSITORY", gives_way=1),
                Column("CATALOGUED", gives_way=3),
                Column("NOW", gives_way=2),
            ),
            [
                (
                    str(each.version),
                    each.state,
                    "/".join(part for part in (each.origin.repository, each.origin.subfolder) if part),
                    (each.origin.revision or "")[:12],
                    each.commit[:12],
                )
                for each in found
            ],
            total=count(found, "adapter"),
        )
        for each in found:
            for change in each.changes:
                print_line(f"{each.version}: {change}")
    elif not codes:
        print_remark("no adapter in the catalog came from the Hub")
    context.exit(worst_code(codes))
