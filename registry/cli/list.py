"""``list``: what is in the catalog, one line for each name."""

from __future__ import annotations

import click

from ...schemas.verification import INTACT, Level, Outcome
from ..catalog.records import AdapterSummary, BundleSummary
from ..face import Registry
from .groups import examples
from .json_output import print_json
from .output import count, describe_bytes, print_remark
from .parameters import format_option, pass_registry, wide_option
from .tables import EMPTY, Column, number, print_table

# The columns that `list` and `search` share.
NAME = Column("NAME")
STATUS = Column("STATUS")
VERSION = number("VERSION", 2)
BASE = Column("BASE", gives_way=3)
RANK = number("RANK", 4)
SIZE = number("SIZE", 5)
DTYPE = Column("DTYPE", gives_way=9)
ALIASES = Column("ALIASES", gives_way=6)
TAGS = Column("TAGS", gives_way=7)
_COLUMNS = (
    NAME,
    Column("KIND", gives_way=1),
    STATUS,
    VERSION,
    BASE,
    RANK,
    SIZE,
    Column("GATE", gives_way=4),
    Column("ESTABLISHED", gives_way=8),
    DTYPE,
    ALIASES,
    TAGS,
)


@click.command("list", epilog=examples("list", "list --format json"))
@wide_option
@format_option
@pass_registry
def command(registry: Registry, *, as_json: bool) -> None:
    """List every adapter and bundle with its latest version."""
    if as_json:
        catalog = registry.catalog
        print_json({"adapters": catalog.list_adapters(), "bundles": catalog.list_bundles()})
        return
    latest = registry.list_latest()
    rows = [*map(_adapter_row, latest.adapters), *map(_bundle_row, latest.bundles)]
    if rows:
        counts = (count(latest.adapters, "adapter"), count(latest.bundles, "bundle"))
        size_bytes = sum(each.weights_bytes for each in latest.adapters)
        size_bytes += sum(each.size_bytes for each in latest.bundles)
        print_table(_COLUMNS, rows, total=", ".join((*filter(None, counts), describe_bytes(size_bytes))))
    else:
        print_remark("the catalog is empty; add an adapter with `meteora-registry add FOLDER`")


def _adapter_row(adapter: AdapterSummary) -> tuple[str, ...]:
    return (
        adapter.name,
        "adapter",
        adapter.verdict.word,
        str(adapter.version),
        adapter.base or EMPTY,
        str(adapter.max_rank or EMPTY),
        describe_bytes(adapter.weights_bytes),
        EMPTY,
        EMPTY,
        " ".join(adapter.dtypes) or EMPTY,
        " ".join(adapter.aliases) or EMPTY,
        " ".join(adapter.tags) or EMPTY,
    )


def _bundle_row(bundle: BundleSummary) -> tuple[str, ...]:
    status, established = _verification(bundle)
    return (
        bundle.name,
        "bundle",
        status,
        str(bundle.version),
        bundle.base or EMPTY,
        EMPTY,
        describe_bytes(bundle.size_bytes),
        bundle.gate_fitted,
        established,
        bundle.dtype,
        " ".join(bundle.aliases) or EMPTY,
        " ".join(bundle.tags) or EMPTY,
    )


def _verification(bundle: BundleSummary) -> tuple[str, str]:
    """Return one word for what verifications came to here, and what they establish."""
    if not bundle.verified:
        return "unverified", EMPTY
    level, outcome = bundle.verified[-1]
    if outcome is not Outcome.PASS:
        return str(outcome), f"nothing at level {level}"
    # The bundle has not changed since it passed at a deeper level: its manifest is the same.
    deepest = Level.SOURCE if (Level.SOURCE, outcome) in bundle.verified else level
    return INTACT, ", ".join(deepest.establishes)
