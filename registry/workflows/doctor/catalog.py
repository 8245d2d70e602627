"""The catalog: whether it can be opened, has the schema that it says it has, and is whole."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ....schemas.errors import CatalogUnusable
from ...catalog import database
from ...catalog.engine import describe_url, engine_for, parse_catalog_url, sqlite_url
from ...home import Home
from .problem import Code, Mending, Problem, join_some

_BACKUP = "put a backup in its place"
_SHOWN = 5


def examine_catalog(home: Home, *, look_for_blobs: bool = True) -> Iterator[Problem]:
    """Yield what is wrong with the catalog; it is not created where there is none.

    Without ``look_for_blobs`` the store is not asked whether a catalog should be there.
    """
    if home.catalog_url is None:
        yield from _examine_leftovers(home.catalog_file)
        if not home.catalog_file.exists():
            if look_for_blobs:
                yield from _examine_absence(home)
            return
    url = parse_catalog_url(home.catalog_url) if home.catalog_url else sqlite_url(home.catalog_file)
    subject = f"`{describe_url(url)}`"
    try:
        with engine_for(url) as engine:
            found = database.find_revision(engine)
            problems = database.find_problems(engine) if found == database.HEAD_REVISION else []
    except CatalogUnusable as error:
        yield Problem(Code.CATALOG_UNUSABLE, subject, error.message, error.hint or _BACKUP)
        return
    if found != database.HEAD_REVISION:
        yield Problem(
            Code.CATALOG_SCHEMA,
            subject,
            f"its schema is `{found or 'none'}`, this version needs `{database.HEAD_REVISION}`",
            "`meteora-registry db upgrade`; for a newer schema, upgrade meteora-registry",
        )
    # Tables, columns and indexes are the schema's; the rest is the file's or the rows'.
    for code, some in (
        (Code.CATALOG_SCHEMA, [each for each in problems if each.startswith("the schema")]),
        (Code.CATALOG_DAMAGED, [each for each in problems if not each.startswith("the schema")]),
    ):
        if some:
            yield Problem(code, subject, "; ".join(some[:_SHOWN]), _BACKUP)


def _examine_absence(home: Home) -> Iterator[Problem]:
    if home.store_url is None and any(True for _ in home.store.list_blobs()):
        yield Problem(
            Code.CATALOG_MISSING,
            f"`{home.catalog_file}`",
            "there is no catalog, and the store has blobs",
            f"{_BACKUP}, or name the catalog with `--catalog`",
        )


def _examine_leftovers(catalog: Path) -> Iterator[Problem]:
    left = database.clear_unfinished(catalog, dry_run=True)
    if left:
        yield Problem(
            Code.CATALOG_LEFTOVER,
            join_some([str(path) for path in left]),
            "left by a process that died while it made the catalog",
            "delete it",
            Mending("delete it", partial(_delete_leftovers, catalog)),
        )


def _delete_leftovers(catalog: Path) -> None:
    database.clear_unfinished(catalog)
