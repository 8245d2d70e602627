"""``import``: a bundle from the layout of the MeteoRA authors' own code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...schemas.errors import UsageError
from ..catalog.catalog import Catalog
from ..dependencies import require_torch
from ..home import Home
from .groups import examples
from .json_output import print_json
from .output import describe_bytes, print_line, print_remark
from .parameters import format_option, layout_option, out_option, pass_home
from .progress import progress_bar

if TYPE_CHECKING:
    from ...fuser.official import ImportedMember


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
@click.option("--base", required=True, help="The base model, which the layout does not name.")
@click.option("--top-k", type=int, help="Adapters for each token. Default: 2, or 1 for a single member.")
@click.option("--temperature", type=float, default=1.0, show_default=True, help="Of the softmax.")
@out_option
@click.option("--name", help="What the catalog calls the bundle. Default: made from the folder's name.")
@format_option
@pass_home
def command(
    home: Home,
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
    from ..workflows.layout import import_official

    described = [_parse_member(text) for text in members]
    with Catalog.open(home) as catalog, progress_bar() as progress:
        fusion = import_official(
            catalog,
            home.store,
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
            f"{describe_bytes(fusion.version.size_bytes)}, verified at level {fusion.record.level}"
        )
    print_remark(
        "note: the gate is imported as it is; the layout does not say whether it was fitted, or on what"
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
            f"`{text}` is no member: expected NAME:RANK:ALPHA, rank and alpha positive",
            hint="such as `legal:8:16`",
        )
    return ImportedMember(name, rank, alpha)
