"""A database's errors as errors about the catalog, whatever it was read with."""

from __future__ import annotations

import sqlite3

from ...schemas.errors import CatalogUnusable
from ..secrets import hide_secrets

BUSY_TIMEOUT_SECONDS = 60.0
STATEMENT_TIMEOUT_SECONDS = 120
# PostgreSQL's codes for a lock and a statement that took longer than they may, a full disk, and a role
# without the right.
_LOCK_NOT_AVAILABLE = "55P03"
_QUERY_CANCELED = "57014"
_DISK_FULL = "53100"
_INSUFFICIENT_PRIVILEGE = "42501"
_FULL_HINT = "free some space on its disk and give the same command again; nothing was half recorded"
_DISK_HINT = "check its disk, and the free space there; nothing was half recorded"
_LOGIN_HINT = (
    "put the password into `~/.pgpass` or the file of PGPASSFILE, which only you may read, or name a "
    "service: docs/postgresql.md"
)
_SERVER_HINT = "see that the server runs, and check host, database and user; nothing was half recorded"


def unreadable_value(error: Exception, catalog: str) -> CatalogUnusable:
    """Return the error about a value that this program does not write, such as a date that is not one."""
    return CatalogUnusable(
        f"the catalog `{catalog}` has a value that cannot be read: {hide_secrets(str(error))}",
        hint="something else has written to it: put a backup in its place",
    )


def describe_failure(error: BaseException | None, catalog: str) -> CatalogUnusable:
    """Return a driver's error as an error about the catalog, with what to do."""
    reason = hide_secrets(str(error).strip().partition("\n")[0])
    code = getattr(error, "sqlite_errorcode", None)
    # The lower byte is the primary code, the rest a detail of it.
    primary = code & 0xFF if isinstance(code, int) else None
    state = getattr(error, "sqlstate", None)
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or state == _LOCK_NOT_AVAILABLE:
        return CatalogUnusable(
            f"the catalog `{catalog}` stayed busy: another process has been writing to it "
            f"for {BUSY_TIMEOUT_SECONDS:.0f} seconds",
            hint="try again when that process has ended",
        )
    if state == _QUERY_CANCELED:
        return CatalogUnusable(
            f"the catalog `{catalog}` took longer than {STATEMENT_TIMEOUT_SECONDS} seconds for one statement",
            hint="try again later, or ask the administrator of the server",
        )
    if state == _INSUFFICIENT_PRIVILEGE:
        return CatalogUnusable(
            f"the catalog `{catalog}` does not let its role do this: {reason}",
            hint="use a role with more rights, such as a writer or the owner; nothing was half recorded",
        )
    if primary in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return CatalogUnusable(
            f"the catalog `{catalog}` is damaged or no catalog: {reason}",
            hint="put a backup in its place, or move it away to begin a new one",
        )
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return CatalogUnusable(
            f"the catalog `{catalog}` cannot be opened for writing: {reason}",
            hint="check the permissions and free space of its folder, or name another with `--home`",
        )
    if state is None and "password" in reason and not isinstance(error, sqlite3.Error):
        return CatalogUnusable(f"the catalog `{catalog}` cannot be reached: {reason}", hint=_LOGIN_HINT)
    if primary is None and state is None and not isinstance(error, sqlite3.Error):
        # The server answers with a code; without one the driver itself did not get that far.
        return CatalogUnusable(f"the catalog `{catalog}` cannot be reached: {reason}", hint=_SERVER_HINT)
    hints: dict[object, str] = {
        sqlite3.SQLITE_FULL: _FULL_HINT,
        sqlite3.SQLITE_IOERR: _DISK_HINT,
        _DISK_FULL: _FULL_HINT,
    }
    return CatalogUnusable(f"the catalog `{catalog}` failed: {reason}", hint=hints.get(primary or state))
