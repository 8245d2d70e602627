"""The audit trail: one event for every change, written in the transaction that makes it."""

from __future__ import annotations

import getpass
from functools import cache
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from . import models
from .records import Event


def record_event(
    session: Session, action: str, subject: str, name: str, version: int | None = None, **details: Any
) -> None:
    """Add an event; ``details`` are JSON values."""
    session.add(
        models.Event(
            actor=_current_user(), action=action, subject=subject, name=name, version=version, details=details
        )
    )


def list_events(session: Session, name: str | None, *, limit: int) -> tuple[Event, ...]:
    """The latest events, the newest first."""
    query = select(models.Event).order_by(models.Event.id.desc()).limit(limit)
    if name is not None:
        query = query.where(models.Event.name == name)
    return tuple(
        Event(row.at, row.actor, row.action, row.subject, row.name, row.version, row.details)
        for row in session.scalars(query)
    )


@cache
def _current_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a number that has no name.
        return "unknown"
