"""``push``: a verified bundle or a catalogued adapter to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...schemas.errors import UsageError
from ...schemas.signers import SigningKey
from ..face import Registry
from .groups import examples as show_examples
from .json_output import print_json
from .output import describe_bytes, print_line
from .parameters import complete_name_or_folder, format_option, pass_registry
from .progress import progress_bar

if TYPE_CHECKING:
    from ..workflows.publication import Pushed


# In place of a key; a file of this name is `./sigstore`.
SIGSTORE = "sigstore"


@click.command(
    "push",
    epilog=show_examples(
        "push ./bundle org/our-bundle",
        "push bundle@2 org/our-bundle --tag v2",
        "push summarise@3 org/summarise --private",
        "push ./bundle org/our-bundle --sign release.key",
        "push ./bundle org/our-bundle --examples examples.jsonl",
        "push ./bundle org/our-bundle --dry-run",
    ),
)
@click.argument("source", metavar="FOLDER|NAME[@VERSION|@ALIAS]", shell_complete=complete_name_or_folder)
@click.argument("repository", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Make a new repository private; a public one is refused.")
@click.option(
    "--pr", "as_pull_request", is_flag=True, help="Open a pull request in place of a commit on main."
)
@click.option("--tag", help="The tag to set. Default: `meteora-` and the content's digest.")
@click.option(
    "--overwrite-card",
    is_flag=True,
    help="Publish a bundle's README.md as it is here, even if it was edited here or on the Hub.",
)
@click.option(
    "--sign",
    metavar="KEY|sigstore",
    help="Sign the bundle with the private key in this file, or with an identity that Sigstore confirms.",
)
@click.option(
    "--certificate",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The key's certificate in PEM, followed by those that lead to a root.",
)
@click.option(
    "--examples",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help='Put prompts and answers on a bundle\'s card; a line is {"prompt": ..., "response": ...}.',
)
@click.option("--dry-run", is_flag=True, help="Show what would be pushed; change nothing.")
@format_option
@pass_registry
def command(
    registry: Registry,
    source: str,
    repository: str,
    *,
    private: bool,
    as_pull_request: bool,
    tag: str | None,
    overwrite_card: bool,
    sign: str | None,
    certificate: Path | None,
    examples: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Publish a verified bundle, or one catalogued adapter.

    A bundle must have passed a verification at level source: its factors were compared with the members'
    own files. It is verified again first. Everything goes into one commit, on top of the one that was
    looked at: a push by another user in between is kept, and ours is refused. Afterwards the Hub's list
    of files is compared with the digests here. The same push again does nothing.

    With --sign the bundle gets a signature over its manifest and its verification record, in the format of
    OpenSSF Model Signing, as model.sig. Sigstore keeps the signer's identity in a public log.
    """
    with progress_bar() as progress:
        pushed = registry.push(
            source,
            repository,
            private=private,
            as_pull_request=as_pull_request,
            tag=tag,
            overwrite_card=overwrite_card,
            sign=_signing_key(sign, certificate),
            examples=examples,
            dry_run=dry_run,
            progress=progress,
        )
    if as_json:
        print_json({"dry_run": dry_run, "pushed": pushed})
    else:
        _print(pushed, dry_run=dry_run)


def _signing_key(sign: str | None, certificate: Path | None) -> SigningKey | None:
    if sign is None:
        if certificate is not None:
            raise UsageError("`--certificate` is that of a key", hint="name the key with `--sign`")
        return None
    return SigningKey(None if sign == SIGSTORE else Path(sign), certificate)


def _print(pushed: Pushed, *, dry_run: bool) -> None:
    place = pushed.repository if pushed.commit is None else f"{pushed.repository}@{pushed.commit}"
    if not (pushed.added or pushed.deleted):
        print_line(f"nothing to do: {place} has the same files already")
        return
    size = describe_bytes(pushed.added_bytes)
    what = f"{len(pushed.added)} files, {size}" + (
        f"; {len(pushed.deleted)} deleted" if pushed.deleted else ""
    )
    if dry_run:
        print_line(
            f"would push: {pushed.repository}: {what}" + ("; a new repository" if pushed.created else "")
        )
        for path in pushed.added:
            print_line(f"  {path}")
        for path in pushed.deleted:
            print_line(f"  delete {path}")
    elif pushed.pull_request is not None:
        print_line(f"proposed: {pushed.pull_request}: {what}")
    else:
        print_line(f"pushed: {place} as {pushed.tag}: {what}")
    if pushed.signed_by is not None:
        print_line(f"signed by: {pushed.signed_by}")
