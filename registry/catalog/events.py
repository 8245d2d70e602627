"""The audit trail: one event for every change, written in the transaction that makes it.

An event has who did what to what, and the previous value where something was changed in place. Events are
only ever added, in a chain (see ``chain``); they refer to names, which stay when their versions are removed.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Collection
from datetime import UTC, datetime
from functools import cache
from typing import Any

from sqlalchemy import Select, Text, and_, cast, literal_column, null, or_, select
from sqlalchemy.orm import Session

from ...schemas.errors import UsageError
from . import models
from .chain import chain
from .column_types import clean_foreign_text
from .query import MAX_PAGE, Page, decode_cursor, encode_cursor
from .records import Event

# Names who acts, where account and machine are not enough, as in a CI job.
ACTOR_VARIABLE = "METEORA_ACTOR"
# The detail with what a version was called before it was renamed, or restored under another name.
PREVIOUS = "previous"


def record_event(
    session: Session, action: str, subject: str, name: str, version: int | None = None, **details: Any
) -> models.Event:
    """Add an event that follows the last one, and return its row; ``details`` are JSON values.

    Writers take turns, so no other event can come in between.
    """
    previous, role = session.execute(_find_last(session)).one()
    values = {
        "at": datetime.now(UTC),
        # As they are stored, because the digest is over what is stored.
        "actor": clean_foreign_text(current_actor()),
        "action": action,
        "subject": subject,
        "name": clean_foreign_text(name),
        "version": version,
        "details": details,
    }
    # The role is not written: the database does that, and lets a role with the least rights write no other.
    event = models.Event(**values, digest=chain(previous, values | {"role": role}))
    session.add(event)
    return event


def _find_last(session: Session) -> Select[Any]:
    """Return the query for the digest of the last event and for the role that the database knows us by."""
    is_postgresql = session.get_bind().dialect.name == "postgresql"
    role = cast(literal_column("session_user"), Text) if is_postgresql else null()
    last = select(models.Event.digest).order_by(models.Event.id.desc()).limit(1)
    return select(last.scalar_subquery(), role)


def current_actor() -> str:
    """Return who acts: as the environment variable names them, else the account and the machine."""
    return os.environ.get(ACTOR_VARIABLE) or _account()


def events_of(session: Session, version: models.Version, actions: Collection[str]) -> tuple[Event, ...]:
    """Return the last events of some kinds that a version had, under any name, the newest first."""
    own = [
        and_(models.Event.name == name, models.Event.version == number)
        for name, number in _names_of(session, version)
    ]
    query = select(models.Event).where(
        models.Event.subject == version.kind, or_(*own), models.Event.action.in_(actions)
    )
    return tuple(map(_event, session.scalars(query.order_by(models.Event.id.desc()).limit(MAX_PAGE))))


def _names_of(session: Session, version: models.Version) -> list[tuple[str, int]]:
    """Return the names and numbers that a version has and had: no pair ever means two contents."""
    names = [(version.entry.name, version.number)]
    for name, number in names:
        moves = session.scalars(
            select(models.Event.details).where(
                models.Event.subject == version.kind,
                models.Event.name == name,
                models.Event.version == number,
                models.Event.action.in_(("rename", "restore")),
            )
        )
        for details in moves:
            earlier, mark, text = str(details.get(PREVIOUS, "")).rpartition("@")
            before = (earlier, int(text)) if mark and text.isdecimal() else None
            if before is not None and before not in names:
                names.append(before)
    return names


def read_history(session: Session, name: str | None, *, limit: int, after: str | None) -> Page[Event]:
    """Return one page of the events of one name or of all, the newest first.

    Raises:
        UsageError: the limit is out of range, or the cursor belongs to another name.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise UsageError(f"a page of {limit} events, expected 1 to {MAX_PAGE}")
    query = select(models.Event).order_by(models.Event.id.desc()).limit(limit + 1)
    question = ("history", name)
    if name is not None:
        query = query.where(models.Event.name == name)
    if after is not None:
        (last,) = decode_cursor(after, question, (int,))
        query = query.where(models.Event.id < last)
    rows = session.scalars(query).all()
    following = encode_cursor(question, (rows[limit - 1].id,)) if len(rows) > limit else None
    return Page(tuple(map(_event, rows[:limit])), following)


def _event(row: models.Event) -> Event:
    return Event(
        row.at, row.actor, row.role, row.action, row.subject, row.name, row.version, row.details, row.digest
    )


@cache
def _account() -> str:
    """Return the account and the machine: ``user@host``."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a number that has no name.
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
