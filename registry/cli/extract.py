"""``extract``: a member out of its bundle."""

from __future__ import annotations

from pathlib import Path

import click

from ...bundle import Bundle
from ..dependencies import require_torch
from ..face import Registry
from ..workflows.bundle_folder import find_bundle_folder, gate_is_fitted
from .groups import examples
from .json_output import print_json
from .output import print_gate_remark, print_line, print_remark
from .parameters import bundle_argument, format_option, out_option, pass_registry


@click.command("extract", epilog=examples("extract ./bundle legal --out ./legal-again"))
@bundle_argument
@click.argument("member")
@out_option
@format_option
@pass_registry
def command(registry: Registry, bundle: str, member: str, *, out: Path, as_json: bool) -> None:
    """Give one member back as the plain PEFT adapter it was.

    Byte for byte.
    """
    require_torch("extracting")
    from ...fuser.extraction import extract_member

    folder = find_bundle_folder(registry, bundle)
    extraction = extract_member(Bundle.open(folder), member, out)
    if as_json:
        print_json(extraction)
    else:
        likeness = "identical to what was fused" if extraction.identical else "not the bytes that were fused"
        print_line(f"extracted: {extraction.name} in {extraction.folder}: {likeness}")
    if extraction.left_out:
        print_remark(
            f"warning: {len(extraction.left_out)} tensors of training state are not in a bundle and were "
            "left out; PEFT names them when it loads the adapter, which computes the same without them"
        )
    elif not extraction.identical:
        print_remark(
            "warning: the bundle was made with a cast that loses precision; the manifest states how much"
        )
    if not gate_is_fitted(folder):
        print_gate_remark()
