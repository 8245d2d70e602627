"""The catalog's database as a whole: created, upgraded to the newest revision, checked, and backed up.

The schema changes only through the alembic revisions in ``meteora_registry.migrations``. A new SQLite catalog
is made under another name in the same folder, with every revision applied, and renamed in one step, so that
no other process ever sees an unfinished one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import PendingRollbackError

from ...files.locks import hold_lock
from ...files.scratch import unfinished_catalog, unfinished_catalog_files
from ...files.writing import move_into_place
from ...schemas.errors import CatalogUnusable, MeteoraError, UsageError
from .database_errors import describe_failure
from .engine import (
    WRITES,
    connection_to,
    describe_url,
    engine_for,
    sqlite_url,
    translated_errors,
)
from .models import Base
from .revisions import MIGRATIONS_FOLDER, check_revision, newer_than_known
from .search_index import find_index_problems
from .trash import find_trash_problems

if TYPE_CHECKING:
    from alembic.config import Config


def find_revision(engine: Engine) -> str | None:
    """Return the revision of the database; None if it holds no catalog.

    Raises:
        CatalogUnusable: it cannot be opened, or is damaged.
    """
    path = sqlite_path(engine.url)
    # Connecting would create the file.
    if path is not None and not path.exists():
        return None
    with connection_to(engine) as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return revision


def require_head(engine: Engine) -> None:
    """Check that the schema of a database is the one this version needs.

    Raises:
        CatalogUnusable: no catalog, an older or a newer schema; the hint names the way out.
    """
    check_revision(find_revision(engine), describe_url(engine.url))


def upgrade(url: URL) -> None:
    """Bring a database to the newest schema; a SQLite file that is not there is created.

    A second process waits for the first, and then finds nothing to do. Each revision is one transaction:
    after a failure the database has the last revision that was complete.

    Raises:
        CatalogUnusable: the schema is newer than this version knows, or the database fails.
    """
    path = sqlite_path(url)
    if path is not None and not path.exists():
        create(path)
        return
    with _sole_migration(url):
        _run_revisions(url)


def create(path: Path) -> None:
    """Make a new SQLite catalog, unless another process has made it meanwhile."""
    beside = unfinished_catalog(path)
    with hold_lock(_lock_of(path)):
        if path.exists():
            return
        # A journal that a crash left would be replayed into the new file.
        _delete_unfinished(path)
        try:
            _run_revisions(sqlite_url(beside))
            _set_write_ahead(beside)
            move_into_place(beside, path)
        except BaseException as error:
            with suppress(OSError):
                _delete_unfinished(path)
            if isinstance(error, OSError) and not isinstance(error, MeteoraError):
                raise CatalogUnusable(
                    f"the catalog `{path}` cannot be created: {error.strerror or error}",
                    hint="check the permissions and the free space of its folder, and its disk",
                ) from error
            raise


def _set_write_ahead(path: Path) -> None:
    try:
        with closing(sqlite3.connect(path)) as connection:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    except sqlite3.Error as error:
        raise describe_failure(error, str(path)) from error
    # SQLite reports a refusal as the old mode, without an error; a rollback journal that is left in the
    # folder would be replayed into this file.
    if mode != "wal":
        raise CatalogUnusable(
            f"the catalog `{path}` cannot keep a write-ahead log, found the journal mode `{mode}`",
            hint="put it on a disk of this machine; other file systems lack the shared memory for it",
        )


def _delete_unfinished(path: Path) -> None:
    for left in unfinished_catalog_files(path):
        left.unlink(missing_ok=True)


def clear_unfinished(path: Path, *, dry_run: bool = False) -> list[Path]:
    """Delete what a process that died while it made a catalog left there, and return the paths.

    Waits for a process that is making one.
    """
    left = [each for each in unfinished_catalog_files(path) if each.exists()]
    if left and not dry_run:
        with hold_lock(_lock_of(path)):
            _delete_unfinished(path)
    return left


def find_problems(engine: Engine) -> list[str]:
    """Return what is wrong with a catalog: drift from the models, damage, broken references."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with connection_to(engine) as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Base.metadata)
        problems = [f"the schema differs from this version's: {difference}" for difference in differences]
        if engine.dialect.name == "sqlite":
            problems += _find_damage(connection)
        # With a table missing, neither could be read.
        return problems or [*find_index_problems(connection), *find_trash_problems(connection)]


def sqlite_path(url: URL) -> Path | None:
    """Return the file of a SQLite catalog; None for another database."""
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def _find_damage(connection: Connection) -> list[str]:
    damage = [row[0] for row in connection.exec_driver_sql("PRAGMA integrity_check")]
    dangling = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    return [f"the file is damaged: {line}" for line in damage if line != "ok"] + [
        f"row {row[1]} of `{row[0]}` refers to a row of `{row[2]}` that is not there" for row in dangling
    ]


def _run_revisions(url: URL) -> None:
    from alembic import command
    from alembic.script import ScriptDirectory

    config = alembic_config()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with engine_for(url, foreign_keys=False) as engine:
        found = find_revision(engine)
        if found is not None and found not in known:
            raise newer_than_known(describe_url(url), found)
        with translated_errors(engine), engine.connect() as connection:
            # On PostgreSQL `_sole_migration` holds the writers' lock: this connection must not wait for it.
            config.attributes["connection"] = connection.execution_options(
                **{WRITES: engine.dialect.name == "sqlite"}
            )
            try:
                command.upgrade(config, "head")
            except PendingRollbackError as error:
                # After Ctrl-C alembic tidies up on the connection that Ctrl-C broke, and that error hides it.
                if isinstance(error.__context__, KeyboardInterrupt):
                    raise error.__context__ from None
                raise


def alembic_config() -> Config:
    """Return what alembic needs to find the revisions, wherever the package is installed."""
    from alembic.config import Config

    config = Config()
    # The value is interpolated, so a per cent sign in the path is doubled.
    config.set_main_option("script_location", str(MIGRATIONS_FOLDER).replace("%", "%%"))
    # What alembic would do with colons and spaces in this path otherwise.
    config.set_main_option("path_separator", "os")
    return config


@contextmanager
def _sole_migration(url: URL) -> Iterator[None]:
    path = sqlite_path(url)
    if path is not None:
        with hold_lock(_lock_of(path)):
            yield
        return
    # The writers' lock, held by a second connection while the first migrates.
    with engine_for(url) as engine, connection_to(engine, writes=True):
        yield


def _lock_of(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def back_up(engine: Engine, path: Path) -> None:
    """Copy the catalog, as it is at one moment, into the new file ``path``, and check the copy.

    Writers go on meanwhile: the copy is taken in one step, from the state that a reader sees.

    Raises:
        UsageError: the catalog is on PostgreSQL.
        CatalogUnusable: the copy cannot be written, or is damaged, as the catalog itself must then be.
    """
    if engine.dialect.name != "sqlite":
        raise UsageError(
            "a catalog on PostgreSQL is backed up with the server's own `pg_dump`",
            hint="or write it to a file with `meteora-registry db export`",
        )
    try:
        with connection_to(engine) as connection, closing(sqlite3.connect(path)) as copy:
            source = connection.connection.driver_connection
            if isinstance(source, sqlite3.Connection):
                source.backup(copy)
    except sqlite3.Error as error:
        raise CatalogUnusable(
            f"the catalog `{describe_url(engine.url)}` cannot be copied to `{path}`: {error}",
            hint="check the free space there; if there is enough, look at the catalog with "
            "`meteora-registry db check`",
        ) from error
    with engine_for(sqlite_url(path)) as copied:
        problems = find_problems(copied)
    if problems:
        raise CatalogUnusable(
            f"the copy of the catalog `{describe_url(engine.url)}` is not sound: {problems[0]}",
            hint="look at the catalog with `meteora-registry db check`",
        )
