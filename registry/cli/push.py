"""``push``: a verified bundle or a catalogued adapter to the Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ...files.scratch import Purpose, temporary_folder
from ...schemas.names import check_repository
from ..catalog.catalog import Catalog
from ..home import Home
from .groups import examples
from .json_output import print_json
from .note import note_in_catalog
from .output import describe_bytes, print_line
from .parameters import format_option, pass_home
from .progress import progress_bar

if TYPE_CHECKING:
    from ..workflows.push import Pushed, Upload


@click.command(
    "push",
    epilog=examples(
        "push ./bundle org/our-bundle",
        "push bundle@2 org/our-bundle --tag v2",
        "push summarise@3 org/summarise --private",
        "push ./bundle org/our-bundle --dry-run",
    ),
)
@click.argument("source", metavar="FOLDER|NAME[@VERSION|@ALIAS]")
@click.argument("repository", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Make a new repository private; a public one is refused.")
@click.option(
    "--pr", "as_pull_request", is_flag=True, help="Open a pull request in place of a commit on main."
)
@click.option("--tag", help="The tag to set. Default: `meteora-` and the content's digest.")
@click.option("--dry-run", is_flag=True, help="Say what would be pushed; change nothing.")
@format_option
@pass_home
def command(
    home: Home,
    source: str,
    repository: str,
    *,
    private: bool,
    as_pull_request: bool,
    tag: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Publish a verified bundle, or one catalogued adapter.

    A bundle must be verified at level source. Everything goes into one commit, on top of the one that was
    looked at: a push by another user in between is kept, and ours is refused. Afterwards the Hub's list
    of files is compared with the digests here. The same push again does nothing.
    """
    from ..hub.client import Hub
    from ..workflows.push import PushOptions, note_push, push
    from ..workflows.push_content import open_upload

    check_repository(repository)
    options = PushOptions(private, as_pull_request, dry_run, tag)
    with temporary_folder(Purpose.PUSH) as scratch:
        with progress_bar() as progress:
            noted, upload = open_upload(
                lambda: Catalog.open(home), lambda: home.store, source, scratch, progress=progress
            )
        pushed = push(Hub(), upload, repository, options)
    if not dry_run:
        note_in_catalog(home, lambda catalog: note_push(catalog, noted, pushed))
    if as_json:
        print_json({"dry_run": dry_run, "pushed": pushed})
    else:
        _print(pushed, upload, dry_run=dry_run)


def _print(pushed: Pushed, upload: Upload, *, dry_run: bool) -> None:
    place = pushed.repository if pushed.commit is None else f"{pushed.repository}@{pushed.commit}"
    if not (pushed.added or pushed.deleted):
        print_line(f"nothing to do: {place} has these very files")
        return
    size = describe_bytes(sum(upload.digests[path].size_bytes for path in pushed.added))
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
