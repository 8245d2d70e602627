"""``pull``: a bundle from the Hub, verified and catalogued."""

from __future__ import annotations

from pathlib import Path

import click

from ...schemas.bundle import NOT_FITTED
from ...schemas.errors import UsageError
from ...schemas.names import HubSource, parse_repository
from ..catalog.catalog import Catalog
from ..dependencies import require_torch
from ..download_limits import MAX_BUNDLE_BYTES
from ..home import Home
from .bundle_text import print_gate_remark
from .groups import examples
from .json_output import print_json
from .output import describe_bytes, print_line, print_remark
from .parameters import format_option, pass_home
from .progress import progress_bar


class RepositoryType(click.ParamType[HubSource]):
    """``org/name``, ``org/name@revision`` or ``hf://org/name@revision``, whatever folders there are."""

    name = "repository"

    def convert(
        self, value: str | HubSource, param: click.Parameter | None, ctx: click.Context | None
    ) -> HubSource:
        """What the text names; ``UsageError`` if it is malformed."""
        return parse_repository(value) if isinstance(value, str) else value


@click.command(
    "pull",
    epilog=examples(
        "pull org/our-bundle",
        "pull org/our-bundle@v2 --out bundle",
        "pull hf://org/our-bundle@0123456789abcdef0123456789abcdef01234567",
    ),
)
@click.argument("repository", metavar="ORG/NAME[@REVISION]", type=RepositoryType())
@click.option(
    "--out", type=click.Path(path_type=Path), help="The new folder. Default: the repository's name."
)
@click.option("--name", help="What the catalog calls the bundle. Default: made from the repository's name.")
@click.option(
    "--max-bytes",
    type=click.IntRange(1),
    default=MAX_BUNDLE_BYTES,
    show_default=True,
    help="The largest bundle that is fetched.",
)
@format_option
@pass_home
def command(
    home: Home,
    repository: HubSource,
    *,
    out: Path | None,
    name: str | None,
    max_bytes: int,
    as_json: bool,
) -> None:
    """Fetch a bundle from the Hub, verify it, and catalogue it.

    Every file is compared with the manifest. The manifest and the small files come first: what they show to
    be changed is refused before the weights are downloaded. The bundle must bring the record of a
    verification at level source, and is verified here at level integrity. Its members are catalogued too.
    """
    require_torch("pulling")
    from ..hub.client import Hub
    from ..workflows.pull import pull

    folder = out or Path(repository.repository.partition("/")[2])
    if not folder.name:
        raise UsageError("`--out` names no folder")
    with Catalog.open(home) as catalog, progress_bar() as progress:
        pulled = pull(
            catalog,
            home.store,
            Hub(),
            repository,
            folder,
            name=name,
            max_bytes=max_bytes,
            progress=progress,
        )
    if as_json:
        print_json(pulled)
    else:
        verb = "pulled" if pulled.created else "already there"
        print_line(
            f"{verb}: {pulled.version.source} in {pulled.folder}: {len(pulled.version.members)} members, "
            f"{describe_bytes(pulled.version.size_bytes)}, from {pulled.repository}@{pulled.commit}"
        )
        print_line(f"verified: every digest, level {pulled.record.level}, and its record of level source")
    if pulled.ignored:
        print_remark(f"note: not fetched, because the manifest does not list it: {', '.join(pulled.ignored)}")
    if pulled.version.gate_fitted == NOT_FITTED:
        print_gate_remark()
