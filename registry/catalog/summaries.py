"""Adapter versions in one line each, read in one statement however many they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, bindparam, func, select
from sqlalchemy.orm import Session

from ...schemas.facts import ListedFacts
from ...schemas.finding import Verdict
from .records import AdapterSummary
from .search_index import is_latest
from .tables import adapter_versions, aliases, entries, named_adapters, tags, versions


def read_summaries(session: Session, wanted: Sequence[int]) -> dict[int, AdapterSummary]:
    """The summaries by version id, ordered by name and number."""
    rows = session.execute(_WANTED, {"wanted": wanted})
    return {row.id: _summary(row) for row in rows}


def list_latest(session: Session) -> tuple[AdapterSummary, ...]:
    """The latest version of every adapter, ordered by name."""
    return tuple(map(_summary, session.execute(_ADAPTERS.where(is_latest()))))


# Neither tags nor aliases have a space.
_TAGS = (
    select(func.aggregate_strings(tags.c.tag, " "))
    .where(tags.c.version_id == adapter_versions.c.id)
    .scalar_subquery()
)
_ALIASES = (
    select(func.aggregate_strings(aliases.c.alias, " "))
    .where(aliases.c.entry_id == versions.c.entry_id, aliases.c.number == versions.c.number)
    .scalar_subquery()
)
_LISTED = tuple(field.name for field in dataclasses.fields(ListedFacts))
_ADAPTERS = (
    select(
        *adapter_versions.c["id", "sound", "fusable", *_LISTED],
        func.coalesce(adapter_versions.c.stated_base, adapter_versions.c.declared_base).label("base"),
        versions.c.number,
        versions.c.created_at,
        entries.c.name,
        _TAGS.label("tags"),
        _ALIASES.label("aliases"),
    )
    .select_from(named_adapters)
    .order_by(entries.c.name, versions.c.number)
)
_WANTED = _ADAPTERS.where(adapter_versions.c.id.in_(bindparam("wanted", expanding=True)))


def _summary(row: Row[*tuple[Any, ...]]) -> AdapterSummary:
    return AdapterSummary(
        **{name: row._mapping[name] for name in _LISTED},
        name=row.name,
        version=row.number,
        base=row.base,
        verdict=Verdict(sound=row.sound, fusable=row.fusable),
        tags=tuple(sorted((row.tags or "").split())),
        aliases=tuple(sorted((row.aliases or "").split())),
        created_at=row.created_at,
    )
