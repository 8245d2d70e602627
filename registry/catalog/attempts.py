"""One transaction, tried again when the database gave it up and none of it was kept.

PostgreSQL rolls back a transaction that conflicts with another, and a connection may be lost: then the whole
transaction is repeated, up to five times, after a growing and uneven pause. If the connection is lost during
the commit itself, the outcome is unknown, so the server is asked for the status of the transaction's number:
a change is neither lost nor made twice. A server that crashed may have lost the transaction and given its
number to another one, so the last event before it is looked up, too. SQLite needs none of this: writers take
turns.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from ...schemas.errors import CatalogUnusable
from .engine import WRITES, describe_url, translated_errors

ATTEMPTS = 6
_FIRST_PAUSE_SECONDS = 0.1
# Conflicts between transactions, and a server that ends sessions or is not ready yet.
_TRANSIENT = frozenset({"40001", "40P01", "57P01", "57P02", "57P03"})
# PostgreSQL's code for a transaction number that has not been used yet.
_IN_THE_FUTURE = "22023"
_MARK = text(
    "SELECT CAST(pg_current_xact_id_if_assigned() AS text) AS number, id AS event, at "
    "FROM (SELECT 1) AS one LEFT JOIN (SELECT id, at FROM events ORDER BY id DESC LIMIT 1) AS last ON true"
)
_STATUS = text(
    "SELECT pg_xact_status(CAST(:number AS xid8)) AS status, "
    "CAST(:event AS bigint) IS NULL OR EXISTS (SELECT 1 FROM events WHERE id = :event AND at = :at) AS there"
)

Result = TypeVar("Result")


@dataclass(slots=True)
class _Progress(Generic[Result]):
    """The progress of a transaction on PostgreSQL, and the mark by which its outcome can be looked up."""

    result: Result | None = None
    mark: Mapping[str, Any] = field(default_factory=dict)
    is_committing: bool = False


def attempt(engine: Engine, work: Callable[[Session], Result], *, writes: bool = False) -> Result:
    """Run ``work`` in a transaction, commit it, and return the result.

    ``work`` may run several times, each time in a new transaction of which the one before left nothing.

    Raises:
        CatalogUnusable: the database cannot be used, or it is not known whether a change was kept.
    """
    pauses = _pauses(engine)
    was_lost = False
    with translated_errors(engine):
        while True:
            progress: _Progress[Result] = _Progress()
            try:
                return _run(engine, work, progress, writes=writes)
            except DBAPIError as error:
                if progress.is_committing and not _is_answer(error):
                    if _was_kept(engine, progress.mark):
                        # The commit was the last step, so the result is complete.
                        return progress.result  # type: ignore[return-value]
                elif not _is_transient(error, was_lost=was_lost):
                    raise
                pause = next(pauses, None)
                if pause is None:
                    raise
                was_lost = was_lost or error.connection_invalidated
            time.sleep(pause)


def _run(
    engine: Engine, work: Callable[[Session], Result], progress: _Progress[Result], *, writes: bool
) -> Result:
    with (
        engine.connect().execution_options(**{WRITES: writes}) as connection,
        connection.begin(),
        Session(connection) as session,
    ):
        result = work(session)
        session.flush()
        if engine.dialect.name == "postgresql":
            if writes:
                progress.mark = connection.execute(_MARK).one()._asdict()
            progress.result = result
            progress.is_committing = True
    return result


def _is_answer(error: DBAPIError) -> bool:
    """Return whether the server itself reported the error, and the connection still works."""
    return getattr(error.orig, "sqlstate", None) is not None and not error.connection_invalidated


def _is_transient(error: DBAPIError, *, was_lost: bool) -> bool:
    if error.connection_invalidated or getattr(error.orig, "sqlstate", None) in _TRANSIENT:
        return True
    # A server that was there a moment ago may be on its way back.
    return was_lost and isinstance(error, OperationalError)


def _was_kept(engine: Engine, mark: Mapping[str, Any]) -> bool:
    """Return whether the transaction of that number was committed, with the last event that it saw.

    Raises:
        CatalogUnusable: the server cannot be asked, or does not know any more.
    """
    if mark.get("number") is None:
        # It changed nothing.
        return True
    for pause in (*_pauses(engine), None):
        kept = _find_outcome(engine, mark)
        if kept is not None:
            return kept
        if pause is not None:
            time.sleep(pause)
    raise CatalogUnusable(
        f"the connection to the catalog `{describe_url(engine.url)}` was lost while a change was being "
        "committed, and whether it was kept cannot be learned",
        hint="look with `meteora-registry history` before you repeat it",
    )


def _find_outcome(engine: Engine, mark: Mapping[str, Any]) -> bool | None:
    """Return whether the server reports a commit; None without an answer, or while the transaction runs."""
    try:
        with engine.connect() as connection:
            status, is_there = connection.execute(_STATUS, mark).one()
    except DBAPIError as error:
        # It crashed before it wrote anything of the transaction, so the number is still free.
        return False if getattr(error.orig, "sqlstate", None) == _IN_THE_FUTURE else None
    return is_there and status == "committed" if status in ("committed", "aborted") else None


def _pauses(engine: Engine) -> Iterator[float]:
    """Yield how many seconds to wait before each further attempt; nothing on SQLite."""
    if engine.dialect.name != "postgresql":
        return
    for number in range(ATTEMPTS - 1):
        # Uneven, so that transactions which failed together do not conflict again.
        yield _FIRST_PAUSE_SECONDS * 2**number * random.uniform(0.5, 1.5)  # noqa: S311
