"""``add``: adapters from folders and from the Hub into the catalog."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...schemas.errors import UsageError
from ...schemas.finding import Finding, Severity
from ...schemas.names import CatalogSource, FolderSource, HubSource, parse_source
from ..catalog.catalog import Catalog
from ..download_limits import MAX_ADAPTER_FILE_BYTES
from ..home import Home
from ..workflows.add import Addition, add_folder
from .failures import reported, worst_code
from .groups import examples
from .json_output import print_json, to_json
from .output import print_line, print_remark
from .parameters import format_option, pass_home
from .progress import progress_bar

if TYPE_CHECKING:
    from ..hub.client import Hub


@dataclasses.dataclass(frozen=True, slots=True)
class AddOptions:
    """What is said of every adapter of one command."""

    name: str | None
    base: str | None
    tags: tuple[str, ...]
    every: bool
    max_bytes: int


@click.command(
    "add",
    epilog=examples(
        "add ./summarise",
        "add ./checkpoint-500 --name summarise --base meta-llama/Llama-3.1-8B --tag candidate",
        "add adapters/*",
        "add org/summarise@v2 hf://org/legal",
        "add org/many --subfolder legal",
        "add org/many --all",
        "add --collection org/our-adapters-64f9a55bb3115b4f513ec026",
    ),
)
@click.argument("sources", metavar="[FOLDER|ORG/NAME[@REVISION]]...", nargs=-1)
@click.option(
    "--name", help="What to call the adapter. Default: made from the folder's or repository's name."
)
@click.option("--base", help="The base model, where the adapter names none or the wrong one.")
@click.option("--tag", "tags", multiple=True, help="A word to attach to the version; may be repeated.")
@click.option("--subfolder", help="The adapter's folder in a repository that holds several.")
@click.option("--all", "every", is_flag=True, help="Every adapter of a repository that holds several.")
@click.option("--collection", metavar="SLUG", help="Every model repository of a collection on the Hub.")
@click.option(
    "--max-bytes",
    type=click.IntRange(1),
    default=MAX_ADAPTER_FILE_BYTES,
    show_default=True,
    help="The largest file that is downloaded.",
)
@format_option
@pass_home
@click.pass_context
def command(
    context: click.Context,
    home: Home,
    sources: tuple[str, ...],
    *,
    name: str | None,
    base: str | None,
    tags: tuple[str, ...],
    subfolder: str | None,
    every: bool,
    collection: str | None,
    max_bytes: int,
    as_json: bool,
) -> None:
    """Check adapters and record them as versions.

    Their bytes go into the content store. A broken adapter is refused with every finding, and nothing
    is recorded. One that is sound and cannot be fused is recorded, and said to be so. Content that the
    name has already makes no new version. Of several each is tried.

    From the Hub an adapter is pinned to a commit, and judged by its config and header before its
    weights are downloaded. Token, cache, mirror and offline mode are huggingface_hub's: HF_TOKEN,
    HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE.
    """
    parsed = [_with_subfolder(_parse(text), subfolder) for text in sources]
    if not parsed and collection is None:
        raise UsageError(
            "no adapter was named", hint="such as `meteora-registry add ./adapter` or `add org/name`"
        )
    if name is not None and (len(parsed) != 1 or every or collection):
        found = f"{len(parsed)} sources" if len(parsed) > 1 else "a request for several"
        raise UsageError(f"`--name` names one adapter, found {found}", hint="add them one by one")
    options = AddOptions(name, base, tags, every, max_bytes)
    codes: list[int] = []
    additions: list[Addition] = []
    with Catalog.open(home) as catalog:
        for addition in _add_each(catalog, home, parsed, collection, options, codes):
            additions.append(addition)
            _describe(addition, as_json=as_json)
    if as_json:
        print_json([_to_json(addition) for addition in additions])
    context.exit(worst_code(codes))


def _parse(text: str) -> FolderSource | HubSource:
    source = parse_source(text)
    # A word that is no folder and no repository can only be a folder that is not there.
    return FolderSource(Path(text)) if isinstance(source, CatalogSource) else source


def _with_subfolder(source: FolderSource | HubSource, subfolder: str | None) -> FolderSource | HubSource:
    if subfolder is None:
        return source
    if isinstance(source, FolderSource) or source.subfolder is not None:
        raise UsageError(
            "`--subfolder` goes with a repository such as `org/name`",
            hint="write a folder with its subfolder",
        )
    return dataclasses.replace(source, subfolder=subfolder.strip("/"))


def _add_each(
    catalog: Catalog,
    home: Home,
    sources: list[FolderSource | HubSource],
    collection: str | None,
    options: AddOptions,
    codes: list[int],
) -> Iterator[Addition]:
    """Every addition that succeeded; the exit code of each try goes to ``codes``."""
    hub: Hub | None = None
    if collection is not None or any(isinstance(source, HubSource) for source in sources):
        from ..hub.client import Hub

        hub = Hub()
    if collection is not None and hub is not None:
        sources = [*sources, *map(HubSource, hub.list_collection(collection))]
    for source in sources:
        with reported(codes):
            if isinstance(source, FolderSource):
                yield _add_folder(catalog, home, source.path, options)
            elif hub is not None:
                yield from _add_repository(catalog, home, hub, source, options, codes)


def _add_folder(catalog: Catalog, home: Home, folder: Path, options: AddOptions) -> Addition:
    with progress_bar() as progress:
        return add_folder(
            catalog,
            home.store,
            folder,
            name=options.name,
            base=options.base,
            tags=options.tags,
            progress=progress,
        )


def _add_repository(
    catalog: Catalog, home: Home, hub: Hub, source: HubSource, options: AddOptions, codes: list[int]
) -> Iterator[Addition]:
    from ..workflows.add_hub import add_from_hub, find_adapters

    listing, candidates = find_adapters(hub, source, every=options.every)
    for candidate in candidates:
        with reported(codes), progress_bar() as progress:
            yield add_from_hub(
                catalog,
                home.store,
                hub,
                listing,
                candidate,
                name=options.name,
                base=options.base,
                tags=options.tags,
                max_bytes=options.max_bytes,
                progress=progress,
            )


def _describe(addition: Addition, *, as_json: bool) -> None:
    version = addition.version
    if not as_json:
        verb = "added" if addition.created else "already there"
        print_line(f"{verb}: {version.source} ({version.verdict})")
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
        "source": addition.source,
        "created": addition.created,
        "duplicates": [str(source) for source in addition.duplicates],
        "skipped": list(addition.skipped),
        "version": to_json(addition.version),
    }
