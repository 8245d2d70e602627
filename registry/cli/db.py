"""``db``: the catalog's schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..home import Home
from .failures import REFUSED
from .output import print_line, print_remark
from .parameters import examples, pass_home

if TYPE_CHECKING:
    from sqlalchemy.engine import URL


@click.group("db", epilog=examples("db current", "db upgrade"))
def command() -> None:
    """Look after the catalog's schema."""


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


def _url_of(home: Home) -> URL:
    from ..catalog.engine import parse_catalog_url, sqlite_url

    return parse_catalog_url(home.catalog_url) if home.catalog_url else sqlite_url(home.catalog_file)
