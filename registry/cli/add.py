"""``add``: adapters from folders into the catalog."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...schemas.errors import MeteoraError, UsageError
from ...schemas.finding import Finding, Severity
from ..home import Home
from .failures import DONE, report_failure, worst_code
from .output import escape, print_json, print_line, print_remark, to_json
from .parameters import examples, format_option, pass_home
from .progress import progress_bar

if TYPE_CHECKING:
    from ..workflows.add import Addition


@click.command(
    "add",
    epilog=examples(
        "add ./summarise",
        "add ./checkpoint-500 --name summarise --base meta-llama/Llama-3.1-8B --tag candidate",
        "add adapters/*",
    ),
)
@click.argument("folders", metavar="FOLDER...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--name", help="What to call the adapter. Default: made from the folder's name.")
@click.option("--base", help="The base model, where the adapter names none or the wrong one.")
@click.option("--tag", "tags", multiple=True, help="A word to attach to the version; may be repeated.")
@format_option
@pass_home
@click.pass_context
def command(
    context: click.Context,
    home: Home,
    folders: tuple[Path, ...],
    *,
    name: str | None,
    base: str | None,
    tags: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check adapters and record them as versions.

    Their bytes go into the content store. A broken adapter is refused with every finding, and nothing
    is recorded. One that is sound and cannot be fused is recorded, and said to be so. Content that the
    name has already makes no new version. Of several folders each is tried.
    """
    from ..catalog.catalog import Catalog
    from ..workflows.add import add_folder

    if name is not None and len(folders) > 1:
        raise UsageError(
            f"`--name` names one adapter, found {len(folders)} folders", hint="add them one by one"
        )
    codes, additions = [], []
    with Catalog.open(home) as catalog:
        for folder in folders:
            try:
                with progress_bar(f"storing {escape(folder.name)}", _size_of(folder)) as advance:
                    addition = add_folder(
                        catalog, home.store, folder, name=name, base=base, tags=tags, advance=advance
                    )
            except (MeteoraError, OSError) as error:
                codes.append(report_failure(error))
                continue
            codes.append(DONE)
            additions.append(addition)
            _describe(addition, as_json=as_json)
    if as_json:
        print_json([_to_json(addition) for addition in additions])
    context.exit(worst_code(codes))


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors") if path.is_file())


def _describe(addition: Addition, *, as_json: bool) -> None:
    version = addition.version
    if not as_json:
        verb = "added" if addition.created else "already there"
        print_line(f"{verb}: {version.source} ({version.verdict})")
    if version.base_model not in (None, version.base):
        print_remark(
            f"note: {version.source}: its base `{version.base}` is known here as `{version.base_model}`"
        )
    for source in addition.duplicates:
        print_remark(f"note: {version.source} has the same content as {source}")
    for line in addition.skipped:
        print_remark(f"note: {line}")
    for finding in version.findings:
        print_remark(f"{_label(finding)}: {version.source}: {finding.describe()}")


def _label(finding: Finding) -> str:
    return "note" if finding.severity is Severity.NOTE else "warning"


def _to_json(addition: Addition) -> object:
    return {
        "folder": str(addition.folder),
        "created": addition.created,
        "duplicates": [str(source) for source in addition.duplicates],
        "skipped": list(addition.skipped),
        "version": to_json(addition.version),
    }
