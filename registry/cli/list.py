"""``list``: what is in the catalog, one line for each name."""

from __future__ import annotations

import click

from ...schemas.bundle import NOT_FITTED
from ...schemas.verification import Level, Outcome
from ..catalog.records import AdapterSummary, BundleVersion
from ..face import Registry
from .groups import examples
from .json_output import print_json
from .output import ESTABLISHED, describe_bytes, print_remark, print_table
from .parameters import format_option, pass_registry

_COLUMNS = ("NAME", "KIND", "VERSION", "BASE", "RANK", "DTYPE", "SIZE", "VERDICT", "ALIASES", "TAGS")


@click.command("list", epilog=examples("list", "list --format json"))
@format_option
@pass_registry
def command(registry: Registry, *, as_json: bool) -> None:
    """List every adapter and bundle with its latest version."""
    adapters, bundles = registry.catalog.list_adapters(), registry.catalog.list_bundles()
    if as_json:
        print_json({"adapters": adapters, "bundles": bundles})
    elif adapters or bundles:
        print_table(_COLUMNS, [*map(_adapter_row, adapters), *map(_bundle_row, bundles)])
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


def _bundle_row(bundle: BundleVersion) -> tuple[str, ...]:
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


def _bundle_verdict(bundle: BundleVersion) -> str:
    own = [each for each in bundle.verifications if each.is_made_here]
    last = own[-1] if own else None
    # The bundle has not changed since it passed at a deeper level: its manifest is the same.
    alike = [each for each in own if last and each.outcome is last.outcome]
    deepest = next((each for each in alike if each.level is Level.SOURCE), last)
    if deepest is None:
        verified = "not verified here"
    elif deepest.outcome is Outcome.PASS:
        verified = ESTABLISHED[deepest.level.value]
    else:
        verified = f"{deepest.outcome} at level {deepest.level}"
    return f"{verified}, gate not fitted" if bundle.gate_fitted == NOT_FITTED else verified
