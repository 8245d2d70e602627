"""``repair``: a copy of an adapter that PEFT can load."""

from __future__ import annotations

from pathlib import Path

import click

from ..workflows.repair import repair
from .groups import examples
from .json_output import print_json
from .output import print_line
from .parameters import format_option, out_option


@click.command("repair", epilog=examples("repair ./adapter --out ./adapter-repaired"))
@click.argument("folder", type=click.Path(path_type=Path))
@out_option
@format_option
def command(folder: Path, *, out: Path, as_json: bool) -> None:
    """Write a copy of an adapter under PEFT's tensor names.

    Wrappers such as torch.compile and FSDP leave marks in tensor names, and PEFT silently ignores such
    tensors. Every number and the config stay as they are.
    """
    repaired = repair(folder, out)
    if as_json:
        print_json(repaired)
    else:
        print_line(f"repaired: {repaired.folder}: {repaired.renamed} tensors renamed ({repaired.verdict})")
