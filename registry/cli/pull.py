"""``pull``: a bundle from the Hub, verified and catalogued."""

from __future__ import annotations

from pathlib import Path

import click

from ...bundle.signers import Signers
from ...schemas.bundle import NOT_FITTED
from ...schemas.errors import UsageError
from ...schemas.limits import MAX_BUNDLE_BYTES
from ...schemas.names import HubSource, parse_repository
from ...schemas.verification import Level
from ..face import Registry
from .groups import examples
from .json_output import print_json
from .output import (
    describe_bytes,
    describe_established,
    describe_rest,
    describe_signer,
    print_gate_remark,
    print_line,
    print_remark,
)
from .parameters import format_option, pass_registry, signer_options
from .progress import progress_bar


class RepositoryType(click.ParamType[HubSource]):
    """``org/name``, ``org/name@revision`` or ``hf://org/name@revision``, whatever folders there are."""

    name = "repository"

    def convert(
        self, value: str | HubSource, param: click.Parameter | None, ctx: click.Context | None
    ) -> HubSource:
        """Return what the text names; raise ``UsageError`` if it is malformed."""
        return parse_repository(value) if isinstance(value, str) else value


@click.command(
    "pull",
    epilog=examples(
        "pull org/our-bundle",
        "pull org/our-bundle@v2 --out bundle",
        "pull org/our-bundle --public-key release.pub",
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
@signer_options
@format_option
@pass_registry
def command(
    registry: Registry,
    repository: HubSource,
    *,
    out: Path | None,
    name: str | None,
    max_bytes: int,
    signers: Signers | None,
    as_json: bool,
) -> None:
    """Fetch a bundle from the Hub, verify it, and catalogue it.

    Every file is compared with the manifest. The manifest and the small files come first: what they show to
    be changed is refused before the weights are downloaded. The bundle must bring the record of a
    verification at level source (its publisher compared it with the members' own files), and is verified here
    at level integrity (against itself). Its members are catalogued too. Where a signer is named, by an option
    or in METEORA_SIGNERS, a bundle that none of them signed is refused.
    """
    if out is not None and not out.name:
        raise UsageError("`--out` names no folder")
    with progress_bar() as progress:
        pulled = registry.pull(
            repository, out, name=name, max_bytes=max_bytes, signers=signers, progress=progress
        )
    if as_json:
        print_json(pulled)
    else:
        verb = "pulled" if pulled.created else "already there"
        print_line(
            f"{verb}: {pulled.version.source} in {pulled.folder}: {len(pulled.version.members)} members, "
            f"{describe_bytes(pulled.version.size_bytes)}, from {pulled.repository}@{pulled.commit}"
        )
        print_line(f"established here: {describe_established(pulled.record)}")
        print_line(
            f"claimed by {pulled.repository}@{pulled.commit}: {', '.join(Level.SOURCE.establishes)}, and its "
            "members' origins and licences"
        )
        print_line(f"not established: {describe_rest(pulled.record)}")
        print_line(f"signed by: {describe_signer(pulled.signed_by, has_signature=pulled.has_signature)}")
    for difference in pulled.card:
        print_remark(f"warning: {difference}")
    if pulled.not_compared:
        print_remark(
            "note: not compared with the digests of their own files, which a bundle cannot write again: "
            f"{', '.join(pulled.not_compared)}"
        )
    if pulled.ignored:
        print_remark(f"note: not fetched, because it is not part of the bundle: {', '.join(pulled.ignored)}")
    if pulled.version.gate_fitted == NOT_FITTED:
        print_gate_remark()
