"""``search-hub``: adapters of a base on the Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ...schemas.errors import UsageError
from ...schemas.names import check_repository
from ..face import Registry
from .failures import reported, worst_code
from .groups import examples
from .json_output import print_json
from .output import count, describe_bytes, print_line, print_remark
from .parameters import BaseName, format_option, pass_registry, wide_option
from .tables import EMPTY, Column, number, print_table

if TYPE_CHECKING:
    from ..workflows.hub_adapters import Match


_COLUMNS = (
    number("NUMBER"),
    Column("REPOSITORY"),
    Column("STATUS", gives_way=1),
    number("RANK", 2),
    number("SIZE", 3),
    Column("FOLDER", gives_way=4),
    Column("COMMIT", gives_way=5),
)


@click.command(
    "search-hub",
    epilog=examples(
        "search-hub --base meta-llama/Llama-3.1-8B",
        "search-hub --base meta-llama/Llama-3.1-8B --limit 5 --add 1 --add 3",
    ),
)
@click.option(
    "--base", type=BaseName(), required=True, metavar="ORG/MODEL", help="The base model that they must name."
)
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Repositories to look into."
)
@click.option(
    "--add",
    "chosen",
    type=click.IntRange(1),
    multiple=True,
    help="Add the adapter of this number in the list; may be repeated.",
)
@wide_option
@format_option
@pass_registry
@click.pass_context
def command(
    context: click.Context,
    registry: Registry,
    *,
    base: str,
    limit: int,
    chosen: tuple[int, ...],
    as_json: bool,
) -> None:
    """List adapters of a base on the Hub, and add the chosen ones.

    The most downloaded come first. Rank, size and verdict come from each adapter's config and header; no
    weights are downloaded for them. What is added is the commit that was listed.
    """
    from ..workflows.hub_adapters import search

    check_repository(base)
    matches = list(search(registry.hub, base, limit=limit))
    if as_json:
        print_json([_to_json(number, match) for number, match in enumerate(matches, start=1)])
    elif matches:
        rows = [_row(place, match) for place, match in enumerate(matches, start=1)]
        print_table(_COLUMNS, rows, total=count(matches, "adapter"))
    else:
        print_remark(f"no repository on the Hub is marked as PEFT adapters of {base}")
    if chosen:
        context.exit(_add(registry, matches, chosen))


def _add(registry: Registry, matches: list[Match], chosen: tuple[int, ...]) -> int:
    from ..workflows.hub_adapters import add_from_hub

    if max(chosen) > len(matches):
        raise UsageError(f"the list has {len(matches)} adapters, found `--add {max(chosen)}`")
    codes: list[int] = []
    registry.open()
    for match in (matches[place - 1] for place in chosen):
        with reported(codes):
            if match.candidate is None:
                raise UsageError(f"`{match.repository}` cannot be added: {match.problem}")
            addition = add_from_hub(registry, match.candidate)
            verb = "added" if addition.created else "already there"
            print_line(f"{verb}: {addition.version.source} ({addition.version.verdict})")
    return worst_code(codes)


def _row(place: int, match: Match) -> tuple[str, ...]:
    return (
        str(place),
        match.repository,
        match.verdict.word if match.verdict else match.problem or EMPTY,
        str(match.max_rank or EMPTY),
        EMPTY if match.size_bytes is None else describe_bytes(match.size_bytes),
        match.folder or EMPTY,
        (match.commit or EMPTY)[:12],
    )


def _to_json(number: int, match: Match) -> dict[str, object]:
    return {
        "number": number,
        "repository": match.repository,
        "commit": match.commit,
        "folder": match.folder,
        "max_rank": match.max_rank,
        "size_bytes": match.size_bytes,
        "verdict": None if match.verdict is None else str(match.verdict),
        "problem": match.problem,
    }
