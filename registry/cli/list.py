"""``list``: what is in the catalog, one line for each name."""

from __future__ import annotations

import click

from ...schemas.base_name import present_name
from ...schemas.verification import INTACT, Level, Outcome
from ..catalog.records import AdapterSummary, BundleSummary
from ..face import Registry
from .groups import examples
from .json_output import print_json
from .output import count, describe_bytes, describe_share, print_remark
from .parameters import format_option, pass_registry, wide_option
from .tables import EMPTY, Column, number, print_table

# The columns that `list` and `search` share; `describe_adapter` has their cells.
NAME = Column("NAME")
STATUS = Column("STATUS")
VERSION = number("VERSION", 2)
BASE = Column("BASE", gives_way=3)
RANK = number("RANK", 4)
SIZE = number("SIZE", 5)
DTYPE = Column("DTYPE", gives_way=9)
ALIASES = Column("ALIASES", gives_way=6)
TAGS = Column("TAGS", gives_way=7)
_KIND = Column("KIND", gives_way=1)
_GATE = Column("GATE", gives_way=4)
_OF_MEMBERS = number("OF MEMBERS", 5)
OWNER = Column("OWNER", gives_way=6)
_ESTABLISHED = Column("ESTABLISHED", gives_way=8)
_COLUMNS = (
    NAME,
    _KIND,
    STATUS,
    VERSION,
    BASE,
    RANK,
    SIZE,
    _GATE,
    _ESTABLISHED,
    _OF_MEMBERS,
    DTYPE,
    ALIASES,
    TAGS,
    OWNER,
)


@click.command("list", epilog=examples("list", "list --format json"))
@wide_option
@format_option
@pass_registry
def command(registry: Registry, *, as_json: bool) -> None:
    """List every adapter and bundle with its latest version.

    SIZE is that of an adapter's weights, and of all files of a bundle.
    """
    if as_json:
        # Whole records: a table needs less, and reads it faster.
        catalog = registry.catalog
        print_json({"adapters": catalog.list_adapters(), "bundles": catalog.list_bundles()})
        return
    latest = registry.list_latest()
    cells = [{_KIND: "adapter"} | describe_adapter(each) for each in latest.adapters]
    cells += map(_describe_bundle, latest.bundles)
    rows = [[each.get(column, EMPTY) for column in _COLUMNS] for each in cells]
    if rows:
        counts = (count(latest.adapters, "adapter"), count(latest.bundles, "bundle"))
        size_bytes = sum(each.weights_bytes for each in latest.adapters)
        size_bytes += sum(each.size_bytes for each in latest.bundles)
        print_table(_COLUMNS, rows, total=", ".join((*filter(None, counts), describe_bytes(size_bytes))))
    else:
        print_remark("the catalog is empty; add an adapter with `meteora-registry add FOLDER`")


def describe_adapter(adapter: AdapterSummary) -> dict[Column, str]:
    """Return the cells of an adapter in the columns that `list` and `search` share."""
    return {
        NAME: adapter.name,
        STATUS: adapter.verdict.word,
        VERSION: str(adapter.version),
        BASE: _base_cell(adapter.base),
        RANK: str(adapter.max_rank or EMPTY),
        SIZE: describe_bytes(adapter.weights_bytes),
        DTYPE: " ".join(adapter.dtypes) or EMPTY,
        ALIASES: " ".join(adapter.aliases) or EMPTY,
        TAGS: " ".join(adapter.tags) or EMPTY,
        OWNER: adapter.owner or EMPTY,
    }


def _describe_bundle(bundle: BundleSummary) -> dict[Column, str]:
    status, established = _verification(bundle)
    return {
        NAME: bundle.name,
        _KIND: "bundle",
        STATUS: status,
        VERSION: str(bundle.version),
        BASE: _base_cell(bundle.base),
        SIZE: describe_bytes(bundle.size_bytes),
        _GATE: bundle.gate_fitted,
        _OF_MEMBERS: EMPTY if bundle.of_members is None else describe_share(bundle.of_members),
        _ESTABLISHED: established,
        DTYPE: bundle.dtype,
        ALIASES: " ".join(bundle.aliases) or EMPTY,
        TAGS: " ".join(bundle.tags) or EMPTY,
        OWNER: bundle.owner or EMPTY,
    }


def _base_cell(base: str | None) -> str:
    # Adapters keep what their config declares, and bundles have today's name; a column has one spelling.
    return present_name(base) if base else EMPTY


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
