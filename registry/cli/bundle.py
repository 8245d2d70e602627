"""``bundle``: the members of a bundle come, go and are replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from ..face import Registry
from .gate import print_decisions
from .groups import examples
from .json_output import print_json
from .output import describe_bytes, print_line, print_remark, print_verified
from .parameters import (
    base_folder_option,
    base_option,
    bundle_argument,
    complete_name,
    format_option,
    out_option,
    pass_registry,
)
from .progress import progress_bar

if TYPE_CHECKING:
    from ..workflows.member_change import ChangedBundle

Function = TypeVar("Function", bound=Callable[..., object])

_WORDS = {"add": "added", "remove": "removed", "replace": "replaced"}


def _change_options(function: Function) -> Function:
    """Add the options that every change of a member has."""
    options = (
        click.option(
            "--statistics",
            metavar="FOLDER",
            type=click.Path(path_type=Path),
            help="The folder that `gate fit --statistics` kept each member's part in.",
        ),
        out_option,
        base_option,
        base_folder_option,
        click.option("--name", help="What the catalog calls it. Default: as the bundle it was made from."),
        format_option,
        pass_registry,
    )
    for option in reversed(options):
        function = option(function)
    return function


def _member_argument(metavar: str) -> Callable[[Function], Function]:
    return click.argument("member", metavar=metavar, shell_complete=complete_name)


def _data_option(text: str, *, required: bool) -> Callable[[Function], Function]:
    return click.option(
        "--data", metavar="FILE", required=required, type=click.Path(path_type=Path), help=text
    )


@click.command(
    "add",
    epilog=examples(
        "bundle add bundle sports --data sports.jsonl --statistics ./statistics --out more",
        "bundle add ./bundle sports@2 --member games --data games.jsonl --statistics ./statistics --out more",
    ),
)
@bundle_argument
@_member_argument("NAME[@VERSION|@ALIAS]")
@_data_option("Texts of the member, a line each, as `gate fit` reads them.", required=True)
@click.option(
    "--member", "called", metavar="NAME", help="What the bundle calls it. Default: the adapter's name."
)
@_change_options
def add(
    registry: Registry,
    /,
    bundle: str,
    member: str,
    *,
    data: Path,
    statistics: Path | None,
    out: Path,
    called: str | None,
    base: str | None,
    base_folder: Path | None,
    name: str | None,
    as_json: bool,
) -> None:
    """Add a member to a bundle, without the others' data.

    The second name is a catalogued adapter, which becomes the last member. The gates are those that a fit of
    all members together gives: of the others, the statistics have what it takes. Their factors stay bit for
    bit. The new version is verified and catalogued like one that was just fused; the old one is not changed.
    """
    with progress_bar() as progress:
        found = registry.add_member(
            bundle,
            member,
            data=data,
            statistics=statistics,
            out=out,
            called=called,
            base=base,
            base_folder=base_folder,
            name=name,
            progress=progress,
        )
    _print_change(found, as_json=as_json)


@click.command(
    "remove",
    epilog=examples(
        "bundle remove bundle sports --statistics ./statistics --out fewer",
        "bundle remove ./bundle sports --base ./base --statistics ./statistics --out fewer",
    ),
)
@bundle_argument
@click.argument("member", metavar="MEMBER")
@_change_options
def remove(
    registry: Registry,
    /,
    bundle: str,
    member: str,
    *,
    statistics: Path | None,
    out: Path,
    base: str | None,
    base_folder: Path | None,
    name: str | None,
    as_json: bool,
) -> None:
    """Remove a member from a bundle, without any data.

    The gates are those that a fit of the remaining members gives; their factors and their order stay. The
    new version is verified and catalogued like one that was just fused; the old one is not changed.
    """
    with progress_bar() as progress:
        found = registry.remove_member(
            bundle,
            member,
            statistics=statistics,
            out=out,
            base=base,
            base_folder=base_folder,
            name=name,
            progress=progress,
        )
    _print_change(found, as_json=as_json)


@click.command(
    "replace",
    epilog=examples(
        "bundle replace bundle sports@3 --out newer",
        "bundle replace bundle sports --with games --data games.jsonl --statistics ./statistics --out newer",
    ),
)
@bundle_argument
@_member_argument("MEMBER[@VERSION|@ALIAS]")
@click.option(
    "--with",
    "adapter",
    metavar="NAME[@VERSION|@ALIAS]",
    shell_complete=complete_name,
    help="The adapter that comes. Default: the one that is catalogued under the member's name.",
)
@_data_option("New texts of the member. Default: those that it was fitted on still hold.", required=False)
@_change_options
def replace(
    registry: Registry,
    /,
    bundle: str,
    member: str,
    *,
    adapter: str | None,
    data: Path | None,
    statistics: Path | None,
    out: Path,
    base: str | None,
    base_folder: Path | None,
    name: str | None,
    as_json: bool,
) -> None:
    """Replace a member of a bundle by another adapter.

    It takes the member's place. Gates read the base alone, so an adapter of the same modules keeps them bit
    for bit, and needs neither statistics nor the base. With --data, or on other modules, they are fitted as
    in `bundle add`. The new version is verified and catalogued like one that was just fused; the old one is
    not changed.
    """
    with progress_bar() as progress:
        found = registry.replace_member(
            bundle,
            member,
            adapter=adapter,
            data=data,
            statistics=statistics,
            out=out,
            base=base,
            base_folder=base_folder,
            name=name,
            progress=progress,
        )
    _print_change(found, as_json=as_json)


def _print_change(found: ChangedBundle, *, as_json: bool) -> None:
    for note in found.notes:
        print_remark(f"note: {note}")
    if as_json:
        print_json(found)
        return
    change, version = found.changed_from, found.version
    gates = "gates kept" if found.gates_kept else "gates fitted"
    print_line(
        f"{_WORDS[change.change]} `{change.member}`: {version.source} in {found.folder}: "
        f"{len(version.members)} member{'s' if len(version.members) > 1 else ''}, {gates}, "
        f"{describe_bytes(version.size_bytes)}, made from {change.manifest_sha256.short}"
    )
    print_verified(found.record)
    if found.request is not None and not found.gates_kept:
        print_line()
        print_decisions(found.request, found.confusions)
