"""``diff``: what changed from one version of an adapter or a bundle to the next."""

from __future__ import annotations

import click

from ...schemas.difference import AdapterDifference
from ..face import Registry
from .diff_tables import Section, tables_of, to_markdown
from .failures import DONE, INCONCLUSIVE
from .groups import examples
from .json_output import mask, print_json
from .output import print_line
from .parameters import complete_name_or_folder, format_choice, pass_registry, wide_option
from .progress import progress_bar
from .tables import Column, print_table

_SHOWN_MODULES = 10
_SIDES = frozenset({"first", "second"})
_NUMBERS = frozenset({"count", "change", "cosine", "rank", "scaling"})


@click.command(
    "diff",
    epilog=examples(
        "diff ./before ./after",
        "diff origin/main:adapters/legal adapters/legal --format markdown",
        "diff legal@1 legal@2",
        "diff org/legal@v1 org/legal",
        "diff ./bundle ./refitted --all",
    ),
)
@click.argument("first", metavar="FIRST", shell_complete=complete_name_or_folder)
@click.argument("second", metavar="SECOND", shell_complete=complete_name_or_folder)
@click.option("--all", "every", is_flag=True, help="List everything that changed, and not only ten modules.")
@format_choice(("text", "json", "markdown"))
@wide_option
@pass_registry
@click.pass_context
def command(
    context: click.Context, registry: Registry, first: str, second: str, *, every: bool, output_format: str
) -> None:
    """Show what changed from one version to the next.

    FIRST and SECOND are two adapters or two bundles: folders, catalogued names, repositories on the Hub
    (`org/name@revision`), or folders in a commit of the git repository around the current folder
    (`REF:path/to/adapter`, `REF:./path`).

    Of adapters it compares the config, ranks, scalings and targets, and the delta s B A of every module; of
    bundles the members, the gates and their decisions.

    Exit code 3 if the modules of an adapter could not be compared.
    """
    with progress_bar() as progress:
        found = registry.diff(first, second, progress=progress)
    if output_format == "json":
        print_json(found)
    else:
        sections = tables_of(mask(found), most=None if every else _SHOWN_MODULES)
        if output_format == "markdown":
            click.echo(to_markdown(sections), nl=False)
        else:
            _print(sections)
    is_open = isinstance(found, AdapterDifference) and found.not_compared is not None
    context.exit(INCONCLUSIVE if is_open else DONE)


def _print(sections: list[Section]) -> None:
    for number, section in enumerate(sections):
        if number:
            print_line()
        for line in section.lines:
            print_line(line)
        if section.rows:
            columns = [_column(place, name) for place, name in enumerate(section.columns)]
            print_table(columns, section.rows)


def _column(place: int, name: str) -> Column:
    """Return a column that gives way to those on its left; both sides are shown beside each other."""
    return Column(name.upper(), is_number=name in _NUMBERS, gives_way=place, stays=name in _SIDES)
