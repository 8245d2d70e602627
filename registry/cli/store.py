"""``store``: what the content store holds, whether it is whole, and what of it nothing needs."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ...schemas.names import CatalogSource
from ..face import Registry
from ..workflows.store_upkeep import (
    BlobState,
    Condition,
    Garbage,
    Usage,
    adopt_store,
    collect_garbage,
    measure_store,
    plan_adoption,
    verify_store,
)
from .failures import REFUSED
from .groups import examples
from .json_output import print_json
from .output import count, describe_bytes, print_facts, print_line, print_remark
from .parameters import confirm, format_option, jobs_option, pass_registry, wide_option
from .progress import progress_bar
from .tables import EMPTY, Column, number, print_table

_SHOWN = 5
_BLOB_COLUMNS = (
    "BLOB",
    "CONDITION",
    number("SIZE", 3),
    Column("FILE", gives_way=2),
    Column("USED BY", gives_way=1),
)
_USAGE_COLUMNS = (
    "NAME",
    Column("KIND", gives_way=1),
    number("VERSIONS", 2),
    number("IN STORE"),
    number("OWN"),
    number("FOLDER", 3),
)


@click.command("gc", epilog=examples("store gc --dry-run", "store gc", "store gc --grace 1"))
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, and delete nothing.")
@click.option(
    "--grace",
    "grace_hours",
    metavar="HOURS",
    type=click.FloatRange(0),
    help="Spare what is younger. Default: 24 in a store elsewhere; 0 on this machine, where locks show "
    "what is in use.",
)
@format_option
@pass_registry
def gc(registry: Registry, *, dry_run: bool, grace_hours: float | None, as_json: bool) -> None:
    """Delete the blobs that nothing refers to.

    What has been in the trash for its days goes first. Also deletes what interrupted commands left. Nothing
    is deleted while other catalogs use the store too, or may: see `store adopt`.
    """
    grace = None if grace_hours is None else grace_hours * 3600
    garbage = collect_garbage(registry, grace_seconds=grace, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, "size_bytes": garbage.size_bytes, "garbage": garbage})
        return
    _describe_garbage(garbage, dry_run=dry_run)


@click.command("adopt", epilog=examples("store adopt", "store adopt --yes"))
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_registry
@click.pass_context
def adopt(context: click.Context, registry: Registry, *, yes: bool) -> None:
    """Make this catalog the only one that uses the store.

    For a store whose other catalogs are gone, or one from before catalogs left marks: the marks of others
    are deleted, so that `store gc` deletes what this catalog does not refer to. Do not do this
    while another catalog uses the store.
    """
    plan = plan_adoption(registry)
    for place in plan.marks:
        print_remark(f"will delete the mark `{place}`")
    print_remark(
        f"`store gc` may then delete {plan.blobs} blobs that this catalog does not refer to, "
        f"{describe_bytes(plan.size_bytes)}"
    )
    if not confirm("Does no other catalog use this store?", yes=yes):
        context.exit(REFUSED)
    adopt_store(registry)
    print_line(f"adopted: {registry.store}")


@click.command("verify", epilog=examples("store verify", "store verify --jobs 8 --format json"))
@jobs_option
@format_option
@pass_registry
@click.pass_context
def verify(context: click.Context, registry: Registry, *, jobs: int, as_json: bool) -> None:
    """Compare every blob that the catalog needs with its digest.

    Each is read as a whole. Of a store elsewhere the bytes there are read, all of them. Exit code 1 if one
    is missing or changed.
    """
    read, broken = 0, []
    with progress_bar() as progress:
        for state in verify_store(registry, jobs=jobs, progress=progress):
            read += 1
            if state.condition is not Condition.WHOLE:
                broken.append(state)
    if as_json:
        print_json({"blobs": read, "broken": [_blob_to_json(state) for state in broken]})
    elif broken:
        print_table(_BLOB_COLUMNS, list(map(_blob_row, broken)))
    print_remark(f"{read} blobs were read, {len(broken)} of them are not whole")
    if broken:
        print_remark("hint: `meteora-registry doctor --fix` repairs what it can, and lists what to add again")
        context.exit(REFUSED)


@click.command("du", epilog=examples("store du", "store du --format json"))
@wide_option
@format_option
@pass_registry
def du(registry: Registry, *, as_json: bool) -> None:
    """Show the size of the content store.

    For each adapter and bundle, too. OWN is what no other adapter refers to. A bundle's folder is outside
    the store, which has only its members.
    """
    usage = measure_store(registry)
    if as_json:
        print_json(usage)
        return
    _describe_usage(usage)


def _describe_garbage(garbage: Garbage, *, dry_run: bool) -> None:
    print_facts(
        [
            ("unreferenced blobs", f"{garbage.blobs}, {describe_bytes(garbage.blob_bytes)}"),
            ("leftovers", f"{garbage.leftovers}, {describe_bytes(garbage.leftover_bytes)}"),
            ("cached copies", f"{garbage.copies}, {describe_bytes(garbage.copy_bytes)}"),
            ("would be set free" if dry_run else "set free", describe_bytes(garbage.size_bytes)),
        ]
    )
    if garbage.expired:
        past = "would be" if dry_run else "were"
        print_remark(
            f"{count(garbage.expired, 'version')} in the trash {past} deleted: {_some(garbage.expired)}"
        )
    if garbage.young:
        print_remark(f"note: {garbage.young} unreferenced blobs are young, and were spared; see `--grace`")


def _some(versions: Sequence[CatalogSource]) -> str:
    more = f" and {len(versions) - _SHOWN} more" if len(versions) > _SHOWN else ""
    return ", ".join(map(str, versions[:_SHOWN])) + more


def _describe_usage(usage: Usage) -> None:
    print_facts(
        [
            ("store", usage.store),
            ("blobs", f"{usage.blobs}, {describe_bytes(usage.size_bytes)}"),
            ("shared", describe_bytes(usage.shared_bytes)),
            ("saved by sharing", describe_bytes(usage.saved_bytes)),
            ("in the trash", describe_bytes(usage.trash_bytes)),
            ("reclaimable", describe_bytes(usage.reclaimable_bytes)),
            ("missing blobs", str(usage.missing)),
        ]
    )
    sizes = describe_bytes
    rows = [
        (each.name, "adapter", str(each.versions), sizes(each.size_bytes), sizes(each.own_bytes), EMPTY)
        for each in usage.adapters
    ]
    rows += [
        (each.name, "bundle", str(each.versions), sizes(each.member_bytes), EMPTY, sizes(each.folder_bytes))
        for each in usage.bundles
    ]
    if rows:
        print_line()
        print_table(_USAGE_COLUMNS, rows)


def _blob_row(state: BlobState) -> tuple[str, ...]:
    return (
        state.sha256.short,
        str(state.condition),
        describe_bytes(state.size_bytes),
        ", ".join(state.file_names),
        ", ".join(map(str, state.used_by)),
    )


def _blob_to_json(state: BlobState) -> dict[str, object]:
    return {
        "sha256": state.sha256,
        "condition": state.condition,
        "found": state.found,
        "size_bytes": state.size_bytes,
        "file_names": state.file_names,
        "used_by": [str(source) for source in state.used_by],
    }
