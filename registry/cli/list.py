"""``list``: what is in the catalog, one line for each name."""

from __future__ import annotations

import click

from ...schemas.bundle import NOT_FITTED
from ...schemas.verification import Level, Outcome
from ..catalog.records import AdapterSummary, BundleSummary
from ..face import Registry
from .groups import examples
from .json_output import print_json
from .output import describe_bytes, print_remark, print_table
from .parameters import format_option, pass_registry

_COLUMNS = ("NAME", "KIND", "VERSION", "BASE", "RANK", "DTYPE", "SIZE", "VERDICT", "ALIASES", "TAGS")


@click.command("list", epilog=examples("list", "list --format json"))
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
        print_table(_COLUMNS, rows)
    else:
        print_remark("the catalog is empty; add an adapter with `meteora-registry add FOLDER`")


def _adapter_row(adapter: AdapterSummary) -> tuple[str, ...]:
    return (
        adapter.name,
        "adapter",
        str(adapter.version),
        adapter.base or "-",
        str(adapter.max_rank or "-"),
        " ".join(adapter.dtypes) or "-",
        describe_bytes(adapter.weights_bytes),
        str(adapter.verdict),
        " ".join(adapter.aliases) or "-",
        " ".join(adapter.tags) or "-",
    )


def _bundle_row(bundle: BundleSummary) -> tuple[str, ...]:
    return (
        bundle.name,
        "bundle",
        str(bundle.version),
        bundle.base or "-",
        "-",
        bundle.dtype,
        describe_bytes(bundle.size_bytes),
        _bundle_verdict(bundle),
        " ".join(bundle.aliases) or "-",
        " ".join(bundle.tags) or "-",
    )


def _bundle_verdict(bundle: BundleSummary) -> str:
    if not bundle.verified:
        verified = "not verified here"
    else:
        level, outcome = bundle.verified[-1]
        # The bundle has not changed since it passed at a deeper level: its manifest is the same.
        deepest = Level.SOURCE if (Level.SOURCE, outcome) in bundle.verified else level
        verified = (
            ", ".join(deepest.establishes) if outcome is Outcome.PASS else f"{outcome} at level {deepest}"
        )
    return f"{verified}, gate not fitted" if bundle.gate_fitted == NOT_FITTED else verified
