"""``db``: the catalog's database: its schema, its backups, and its way into another."""

from __future__ import annotations

from pathlib import Path

import click
from sqlalchemy.engine import URL

from ...schemas.digest import Digest
from ..catalog import database
from ..catalog.engine import engine_for, parse_catalog_url, sqlite_url
from ..catalog.revisions import HEAD_REVISION
from ..face import Registry
from ..home import Home
from ..workflows.catalog_files import backup_catalog, export_catalog, import_catalog
from .failures import REFUSED
from .groups import examples
from .output import describe_bytes, print_line, print_remark
from .parameters import pass_registry
from .progress import progress_bar


@click.command("upgrade", epilog=examples("db upgrade", "--catalog postgresql://user@host/name db upgrade"))
@pass_registry
def upgrade(registry: Registry) -> None:
    """Bring the catalog to the schema of this version.

    A catalog that does not exist is created.
    """
    url = _url_of(registry.home)
    database.upgrade(url)
    print_line(HEAD_REVISION)


@click.command("current", epilog=examples("db current"))
@pass_registry
def current(registry: Registry) -> None:
    """Print the revision of the catalog's schema.

    Prints on stderr whether this version needs another.
    """
    with engine_for(_url_of(registry.home)) as engine:
        found = database.find_revision(engine)
    print_line(found or "none")
    if found != HEAD_REVISION:
        print_remark(f"this version of meteora-registry needs {HEAD_REVISION}")


class DigestType(click.ParamType[Digest]):
    """A SHA-256 digest of 64 hexadecimal digits."""

    name = "digest"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Digest:
        """Return the digest."""
        try:
            return Digest(value.strip().lower())
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("check", epilog=examples("db check", "db check --head 9f2c...e1"))
@click.option(
    "--head",
    metavar="DIGEST",
    type=DigestType(),
    help="What `history --head` printed: the history up to it must be as it was then.",
)
@pass_registry
@click.pass_context
def check(context: click.Context, registry: Registry, *, head: Digest | None) -> None:
    """Check the catalog's schema and history, and look for damage.

    The schema must be this version's. Every event must follow from the one before it, and every version must
    have the content that it was added with.
    """
    with engine_for(_url_of(registry.home)) as engine:
        database.require_head(engine)
        problems = database.find_problems(engine)
    # With a table missing, the history could not be read.
    history = None if problems else registry.catalog.check_history(head)
    for problem in problems if history is None else history.problems:
        print_line(problem)
    if history is None or history.problems:
        context.exit(REFUSED)
    print_remark("the catalog is sound, and its schema is this version's")
    if history.since is not None:
        print_remark(f"its history is as it was at that head, and has {history.since} events since")


@click.command("export", epilog=examples("db export catalog.jsonl"))
@click.argument("file", type=click.Path(path_type=Path))
@pass_registry
def export(registry: Registry, file: Path) -> None:
    """Write the whole catalog to a file.

    FILE is for `db import` into either database. The adapters' bytes stay in the content store.
    """
    with progress_bar() as progress:
        count = export_catalog(registry.catalog, file, progress=progress)
    print_line(f"exported: {count} rows")


@click.command(
    "import",
    epilog=examples(
        "db import catalog.jsonl", "--catalog postgresql://user@host/name db import catalog.jsonl"
    ),
)
@click.argument("file", type=click.Path(path_type=Path))
@pass_registry
def import_(registry: Registry, file: Path) -> None:
    """Read FILE, which `db export` wrote, into an empty catalog.

    All of it is checked on the way; if anything is wrong, the catalog stays empty.
    """
    with progress_bar() as progress:
        count = import_catalog(registry.catalog, file, store=registry.store, progress=progress)
    print_line(f"imported: {count} rows")


@click.command("backup", epilog=examples("db backup catalog-2026-05-01.db"))
@click.argument("file", type=click.Path(path_type=Path))
@pass_registry
def backup(registry: Registry, file: Path) -> None:
    """Copy a catalog on SQLite to a file, and check the copy.

    Others may be writing to the catalog meanwhile.
    """
    size_bytes = backup_catalog(registry.catalog, file)
    print_line(f"backed up: {describe_bytes(size_bytes)}")


def _url_of(home: Home) -> URL:
    return parse_catalog_url(home.catalog_url) if home.catalog_url else sqlite_url(home.catalog_file)
