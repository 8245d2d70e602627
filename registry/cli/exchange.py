"""``export`` and ``import``: bundles in the layout of the MeteoRA authors' own code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...bundle import Bundle
from ...schemas.errors import UsageError
from ..dependencies import require_torch
from ..face import Registry
from ..workflows.bundle_folder import find_bundle_folder, gate_is_fitted
from .groups import examples
from .json_output import print_json
from .output import describe_bytes, describe_level, print_gate_remark, print_line, print_remark
from .parameters import (
    BaseName,
    base_folder_option,
    bundle_argument,
    format_option,
    layout_option,
    out_option,
    pass_registry,
)
from .progress import progress_bar

if TYPE_CHECKING:
    from ...fuser.official import ImportedMember


@click.command(
    "export",
    epilog=examples(
        "export ./bundle --layout official --out ./official",
        "export ./bundle --layout official --out ./official --base-folder ./Llama-3.1-8B",
    ),
)
@bundle_argument
@layout_option
@out_option
@base_folder_option
@format_option
@pass_registry
def export(registry: Registry, bundle: str, *, out: Path, base_folder: Path | None, as_json: bool) -> None:
    """Write a bundle in the layout of the MeteoRA authors' code.

    It has one rank, and one PEFT folder per member. The layout has no place for names, ranks, alphas, top
    k, temperature and base; they go into export.json beside it. What it cannot carry at all
    is listed as a warning, and so is what their released code does not take: it has constants for the
    numbers of members and rows, and loads a full model.safetensors, which is written where the base's
    folder is given.
    """
    require_torch("exporting")
    from ...fuser.official import export_official

    folder = find_bundle_folder(registry, bundle)
    exported = export_official(Bundle.open(folder), out, base=base_folder)
    if as_json:
        print_json(exported)
    else:
        print_line(f"exported: {exported.folder}, every member padded to rank {exported.rank}")
    for line in (*exported.losses, *exported.limits):
        print_remark(f"warning: {line}")
    if not gate_is_fitted(folder):
        print_gate_remark()


@click.command(
    "import",
    epilog=examples(
        "import ./moe_lora.safetensors --layout official --member legal:8:16 --member medical:4:8 "
        "--base meta-llama/Llama-3.1-8B --out bundle"
    ),
)
@click.argument("weights", type=click.Path(path_type=Path))
@layout_option
@click.option(
    "--member",
    "members",
    metavar="NAME:RANK:ALPHA",
    multiple=True,
    required=True,
    help="A member in its order, with its rank before padding; repeated for each.",
)
@click.option(
    "--base", type=BaseName(), required=True, help="The base model, which the layout does not name."
)
@click.option("--top-k", type=int, help="Adapters for each token. Default: 2, or 1 for a single member.")
@click.option("--temperature", type=float, default=1.0, show_default=True, help="Of the softmax.")
@out_option
@click.option("--name", help="What the catalog calls the bundle. Default: made from the folder's name.")
@format_option
@pass_registry
def import_(
    registry: Registry,
    weights: Path,
    members: tuple[str, ...],
    *,
    base: str,
    top_k: int | None,
    temperature: float,
    out: Path,
    name: str | None,
    as_json: bool,
) -> None:
    """Make a bundle from the layout of the MeteoRA authors' code.

    The members' names and ranks must be given. Each member is cut back to its own rank and catalogued as
    the plain adapter it is; the gates are taken as they are.
    """
    require_torch("importing")
    from ..workflows.fusion import import_official

    described = [_parse_member(text) for text in members]
    with progress_bar() as progress:
        fusion = import_official(
            registry,
            weights,
            described,
            out,
            base=base,
            top_k=top_k,
            temperature=temperature,
            name=name,
            progress=progress,
        )
    if as_json:
        print_json({"version": fusion.version, "verification": fusion.record, "plan": fusion.plan})
    else:
        print_line(
            f"imported: {fusion.version.source} in {fusion.folder}: {len(described)} members, "
            f"{describe_bytes(fusion.version.size_bytes)}, verified at {describe_level(fusion.record.level)}"
        )
    print_remark(
        "note: the gate is imported as it is; the layout does not record whether it was fitted, or on what"
    )


def _parse_member(text: str) -> ImportedMember:
    from ...fuser.official import ImportedMember

    parts = text.split(":")
    try:
        name, rank, alpha = parts[0], int(parts[1]), float(parts[2])
    except (IndexError, ValueError):
        name, rank, alpha = "", 0, 0.0
    if len(parts) != 3 or rank < 1 or not (math.isfinite(alpha) and alpha > 0):
        raise UsageError(
            f"`{text}` is not a member: expected NAME:RANK:ALPHA, rank and alpha positive",
            hint="such as `legal:8:16`",
        )
    return ImportedMember(name, rank, alpha)
