"""``trace``: which member each token of a prompt and its answer took."""

from __future__ import annotations

from pathlib import Path

import click

from ..dependencies import require_torch
from ..face import Registry
from ..workflows.base_place import choose_base_to_run
from ..workflows.bundle_folder import find_bundle_folder
from .groups import examples
from .json_output import print_json
from .output import print_gate_remark, print_remark
from .parameters import (
    MAX_COUNT,
    base_folder_option,
    base_option,
    bundle_argument,
    format_option,
    pass_registry,
)
from .prompts import read_prompt


@click.command(
    "trace",
    epilog=examples(
        "trace ./bundle --base ./llama --prompt 'Write 1987 in roman numerals.'",
        "trace bundle@2 --base ./llama --prompt 'Hello' --max-new-tokens 100 --html trace.html",
        "trace ./bundle --base ./llama --prompt - --format json < prompt.txt > trace.json",
    ),
)
@bundle_argument
@base_option
@base_folder_option
@click.option(
    "--prompt", metavar="TEXT", required=True, help="What the model is given, as it is; - reads stdin."
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(0, MAX_COUNT),
    default=64,
    show_default=True,
    help="The longest answer; 0 reads the prompt alone.",
)
@click.option(
    "--html",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the trace as one HTML page; a file that is there is replaced.",
)
@format_option
@pass_registry
def command(
    registry: Registry,
    bundle: str,
    *,
    base: str | None,
    base_folder: Path | None,
    prompt: str,
    max_new_tokens: int,
    html: Path | None,
    as_json: bool,
) -> None:
    """Show which member each token of a prompt and its answer took.

    A token is marked with the letter of the member that took the largest share of it over all modules, as
    the model read it; on a terminal also with its colour, unless NO_COLOR is set. The page shows the
    weights, and every layer and module apart.
    """
    require_torch("tracing")
    from ..workflows.inference import trace, write_page
    from .trace_text import print_trace

    text = read_prompt(prompt)
    folder = find_bundle_folder(registry, bundle)
    source = choose_base_to_run(registry, folder, base, base_folder)
    found = trace(folder, source, text, max_new_tokens=max_new_tokens, page=html)
    if html is not None:
        write_page(html, found)
        print_remark(f"the page is in `{html}`")
    if as_json:
        print_json(found)
    else:
        print_trace(found)
    if not found.gate_fitted:
        print_gate_remark()
