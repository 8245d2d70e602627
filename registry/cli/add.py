"""``add``: adapters from folders and from the Hub into the catalog."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import click

from ...schemas.errors import UsageError
from ...schemas.finding import Finding, Severity
from ...schemas.limits import MAX_ADAPTER_FILE_BYTES
from ...schemas.names import CatalogSource, FolderSource, HubSource, below, parse_source
from ..face import Registry
from ..workflows.additions import Addition
from ..workflows.validation import name_adapters_below
from .failures import reported, worst_code
from .groups import examples
from .json_output import print_json, to_json
from .output import print_line, print_remark
from .parameters import BaseName, complete_folder, follow_links_option, format_option, pass_registry
from .progress import progress_bar


class AddOptions(TypedDict):
    """The options that hold for every adapter of one command."""

    name: str | None
    base: str | None
    tags: tuple[str, ...]
    max_bytes: int
    follow_links: bool


@click.command(
    "add",
    epilog=examples(
        "add ./summarise",
        "add ./checkpoint-500 --name summarise --base meta-llama/Llama-3.1-8B --tag candidate",
        "add adapters/*",
        "add org/summarise@v2 hf://org/legal",
        "add org/many --subfolder legal",
        "add org/many --all",
        "add ./runs --all",
        "add --collection org/our-adapters-64f9a55bb3115b4f513ec026",
    ),
)
@click.argument(
    "sources", metavar="[FOLDER|ORG/NAME[@REVISION]]...", nargs=-1, shell_complete=complete_folder
)
@click.option(
    "--name", help="What to call the adapter. Default: made from the folder's or repository's name."
)
@click.option(
    "--base", type=BaseName(), help="The base model, where the adapter names none or the wrong one."
)
@click.option("--tag", "tags", multiple=True, help="A word to attach to the version; may be repeated.")
@click.option("--subfolder", help="The adapter's folder below the folder or in the repository.")
@click.option("--all", "every", is_flag=True, help="Every adapter in a folder or a repository.")
@click.option("--collection", metavar="SLUG", help="Every model repository of a collection on the Hub.")
@click.option(
    "--max-bytes",
    type=click.IntRange(1),
    default=MAX_ADAPTER_FILE_BYTES,
    show_default=True,
    help="The largest file that is downloaded.",
)
@follow_links_option
@format_option
@pass_registry
@click.pass_context
def command(
    context: click.Context,
    registry: Registry,
    sources: tuple[str, ...],
    *,
    name: str | None,
    base: str | None,
    tags: tuple[str, ...],
    subfolder: str | None,
    every: bool,
    collection: str | None,
    max_bytes: int,
    follow_links: bool,
    as_json: bool,
) -> None:
    """Check adapters and record them as versions.

    Their bytes go into the content store. A broken adapter is refused with every finding, and nothing
    is recorded. One that is sound and cannot be fused is recorded with a warning. Content that the
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
    options = AddOptions(name=name, base=base, tags=tags, max_bytes=max_bytes, follow_links=follow_links)
    codes: list[int] = []
    additions: list[Addition] = []
    for addition in _add_each(registry.open(), parsed, collection, options, codes, every=every):
        additions.append(addition)
        _describe(addition, as_json=as_json)
    _print_findings(additions)
    if as_json:
        print_json([_to_json(addition) for addition in additions])
    else:
        _print_summary(additions, failed=sum(map(bool, codes)))
    context.exit(worst_code(codes))


def _parse(text: str) -> FolderSource | HubSource:
    source = parse_source(text)
    # A word that names neither a folder nor a repository can only be a missing folder.
    return FolderSource(Path(text)) if isinstance(source, CatalogSource) else source


def _with_subfolder(source: FolderSource | HubSource, subfolder: str | None) -> FolderSource | HubSource:
    if subfolder is None:
        return source
    if isinstance(source, FolderSource):
        return FolderSource(below(source.path, subfolder.strip("/")))
    if source.subfolder is not None:
        raise UsageError(
            f"`--subfolder` is given, and the source names `{source.subfolder}` already", hint="leave one out"
        )
    return dataclasses.replace(source, subfolder=subfolder.strip("/"))


def _add_each(
    registry: Registry,
    sources: list[FolderSource | HubSource],
    collection: str | None,
    options: AddOptions,
    codes: list[int],
    *,
    every: bool,
) -> Iterator[Addition]:
    """Yield every addition that succeeded; the exit code of each attempt goes to ``codes``."""
    if collection is not None:
        sources = [*sources, *map(HubSource, registry.hub.list_collection(collection))]
    elif any(isinstance(source, HubSource) for source in sources):
        # Opened here, so that what is wrong with its settings is reported once for all repositories.
        _ = registry.hub
    for source in sources:
        with reported(codes):
            if every and isinstance(source, HubSource):
                yield from _add_every(registry, source, options, codes)
            elif every and isinstance(source, FolderSource):
                yield from _add_below(registry, source.path, options, codes)
            else:
                with progress_bar() as progress:
                    yield registry.add(source, **options, progress=progress)


def _add_every(
    registry: Registry, source: HubSource, options: AddOptions, codes: list[int]
) -> Iterator[Addition]:
    from ..workflows.hub_adapters import add_from_hub, find_adapters

    for candidate in find_adapters(registry.hub, source, every=True):
        with reported(codes), progress_bar() as progress:
            yield add_from_hub(
                registry,
                candidate,
                base=options["base"],
                tags=options["tags"],
                max_bytes=options["max_bytes"],
                progress=progress,
            )


def _add_below(registry: Registry, folder: Path, options: AddOptions, codes: list[int]) -> Iterator[Addition]:
    for name, path in name_adapters_below(folder):
        with reported(codes), progress_bar() as progress:
            yield registry.add(path, **(options | {"name": name}), progress=progress)


def _describe(addition: Addition, *, as_json: bool) -> None:
    version = addition.version
    if not as_json:
        verb = "added" if addition.created else "already there"
        print_line(f"{verb}: {version.source} ({version.verdict})")
    for source in addition.duplicates:
        print_remark(f"note: {version.source} has the same content as {source}")
    for line in addition.skipped:
        print_remark(f"note: {line}")
    for line in addition.warnings:
        print_remark(f"warning: {line}")


def _print_findings(additions: list[Addition]) -> None:
    """Print what was found: each rule once, with the count of its adapters and the first as example."""
    found: dict[str, list[tuple[str, Finding]]] = {}
    for version in (addition.version for addition in additions):
        for finding in version.findings:
            found.setdefault(finding.code, []).append((str(version.source), finding))
    for cases in found.values():
        source, finding = cases[0]
        adapters = len({each for each, _ in cases})
        more = f"{adapters} adapters, such as " if adapters > 1 else ""
        print_remark(f"{_label(finding)}: {more}{source}: {finding.describe()}")


def _print_summary(additions: list[Addition], *, failed: int) -> None:
    if len(additions) + failed < 2:
        return
    created = sum(addition.created for addition in additions)
    fusable = sum(addition.version.verdict.fusable for addition in additions)
    again = f", {len(additions) - created} already there" if created < len(additions) else ""
    refused = f", {failed} not added" if failed else ""
    print_remark(f"{created} added{again}{refused}; {fusable} can be fused")


def _label(finding: Finding) -> str:
    return "note" if finding.severity is Severity.NOTE else "warning"


def _to_json(addition: Addition) -> object:
    return {
        "source": addition.source,
        "created": addition.created,
        "duplicates": [str(source) for source in addition.duplicates],
        "skipped": list(addition.skipped),
        "warnings": list(addition.warnings),
        "version": to_json(addition.version),
    }
