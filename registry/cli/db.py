"""``db``: the catalog's database: its schema, its backups, and its way into another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..home import Home
from .failures import REFUSED
from .output import describe_bytes, print_line, print_remark
from .parameters import examples, pass_home
from .progress import step_bar

if TYPE_CHECKING:
    from sqlalchemy.engine import URL


@click.group("db", epilog=examples("db current", "db upgrade", "db backup catalog-copy.db"))
def command() -> None:
    """Look after the catalog's database."""


@command.command("upgrade", epilog=examples("db upgrade", "--catalog postgresql://user@host/name db upgrade"))
@pass_home
def upgrade(home: Home) -> None:
    """Bring the catalog to the schema of this version, creating it if it is not there."""
    from ..catalog import schema

    url = _url_of(home)
    schema.upgrade(url)
    print_line(schema.HEAD_REVISION)


@command.command("current", epilog=examples("db current"))
@pass_home
def current(home: Home) -> None:
    """Print the schema's revision, and say whether this version needs another."""
    from ..catalog import schema
    from ..catalog.engine import engine_for

    with engine_for(_url_of(home)) as engine:
        found = schema.find_revision(engine)
    print_line(found or "none")
    if found != schema.HEAD_REVISION:
        print_remark(f"this version of meteora-registry needs {schema.HEAD_REVISION}")


@command.command("check", epilog=examples("db check"))
@pass_home
@click.pass_context
def check(context: click.Context, home: Home) -> None:
    """Check that the schema is this version's, and that the catalog is not damaged."""
    from ..catalog import schema
    from ..catalog.engine import engine_for

    with engine_for(_url_of(home)) as engine:
        schema.require_head(engine)
        problems = schema.find_problems(engine)
    for problem in problems:
        print_line(problem)
    if problems:
        context.exit(REFUSED)
    print_remark("the catalog is sound, and its schema is this version's")


@command.command("export", epilog=examples("db export catalog.jsonl"))
@click.argument("file", type=click.Path(path_type=Path))
@pass_home
def export(home: Home, file: Path) -> None:
    """Write the whole catalog to FILE, for `db import` into either database.

    The adapters' bytes stay in the content store.
    """
    from ..catalog.catalog import Catalog
    from ..workflows.transfer import export_catalog

    with Catalog.open(home) as catalog, step_bar() as advance:
        count = export_catalog(catalog, file, advance=advance)
    print_line(f"exported: {count} rows")


@command.command(
    "import",
    epilog=examples(
        "db import catalog.jsonl", "--catalog postgresql://user@host/name db import catalog.jsonl"
    ),
)
@click.argument("file", type=click.Path(path_type=Path))
@pass_home
def import_(home: Home, file: Path) -> None:
    """Read FILE, which `db export` wrote, into an empty catalog.

    All of it is checked on the way; if anything is wrong, the catalog stays empty.
    """
    from ..catalog.catalog import Catalog
    from ..workflows.transfer import import_catalog

    with Catalog.open(home) as catalog, step_bar() as advance:
        count = import_catalog(catalog, file, store=home.store, advance=advance)
    print_line(f"imported: {count} rows")


@command.command("backup", epilog=examples("db backup catalog-2026-05-01.db"))
@click.argument("file", type=click.Path(path_type=Path))
@pass_home
def backup(home: Home, file: Path) -> None:
    """Copy a catalog on SQLite to FILE, while others may be writing to it, and check the copy."""
    from ..catalog.catalog import Catalog
    from ..workflows.transfer import backup_catalog

    with Catalog.open(home) as catalog:
        size_bytes = backup_catalog(catalog, file)
    print_line(f"backed up: {describe_bytes(size_bytes)}")


def _url_of(home: Home) -> URL:
    from ..catalog.engine import parse_catalog_url, sqlite_url

    return parse_catalog_url(home.catalog_url) if home.catalog_url else sqlite_url(home.catalog_file)
