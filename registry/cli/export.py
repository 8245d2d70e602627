"""``export``: a bundle in the layout of the MeteoRA authors' own code."""

from __future__ import annotations

from pathlib import Path

import click

from ...bundle import Bundle
from ..catalog.catalog import Catalog
from ..dependencies import require_torch
from ..home import Home
from ..workflows.bundle_folder import find_bundle_folder, gate_is_fitted
from .bundle_text import print_gate_remark
from .groups import examples
from .json_output import print_json
from .output import print_line, print_remark
from .parameters import bundle_argument, format_option, layout_option, out_option, pass_home


@click.command("export", epilog=examples("export ./bundle --layout official --out ./official"))
@bundle_argument
@layout_option
@out_option
@format_option
@pass_home
def command(home: Home, bundle: str, *, out: Path, as_json: bool) -> None:
    """Write a bundle in the layout of the MeteoRA authors' code.

    It has one rank, and one PEFT folder per member. The layout has no place for names, ranks, alphas, top
    k, temperature and base; they go into export.json beside it. What it cannot carry at all is said.
    """
    require_torch("exporting")
    from ...fuser.official import export_official

    folder = find_bundle_folder(lambda: Catalog.open(home), bundle)
    exported = export_official(Bundle.open(folder), out)
    if as_json:
        print_json(exported)
    else:
        print_line(f"exported: {exported.folder}, every member padded to rank {exported.rank}")
    for loss in exported.losses:
        print_remark(f"warning: {loss}")
    if not gate_is_fitted(folder):
        print_gate_remark()
