"""Adapter versions in one line each, read in three statements however many they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Row, Select, func, select
from sqlalchemy.orm import Session

from ...schemas.finding import Verdict
from .records import AdapterSummary
from .search_index import is_latest
from .tables import adapter_versions, aliases, entries, named_adapters, tags, versions

# The versions that are wanted: their ids, or what selects these.
Wanted = Sequence[int] | Select[Any]


def read_summaries(session: Session, wanted: Wanted) -> dict[int, AdapterSummary]:
    """The summaries by version id, ordered by name and number."""
    rows = session.execute(_ADAPTERS.where(adapter_versions.c.id.in_(wanted))).all()
    tags_of = _grouped(session.execute(_TAGS.where(tags.c.version_id.in_(wanted))))
    aliases_of = _grouped(session.execute(_ALIASES.where(versions.c.id.in_(wanted))))
    return {row.id: _summary(row, tags_of[row.id], aliases_of[row.id]) for row in rows}


def list_latest(session: Session) -> tuple[AdapterSummary, ...]:
    """The latest version of every adapter, ordered by name."""
    return tuple(read_summaries(session, select(versions.c.id).where(is_latest())).values())


_ADAPTERS = (
    select(
        *adapter_versions.c["id", "max_rank", "dtypes", "weights_bytes", "license", "sound", "fusable"],
        func.coalesce(adapter_versions.c.stated_base, adapter_versions.c.declared_base).label("base"),
        versions.c.number,
        versions.c.created_at,
        entries.c.name,
    )
    .select_from(named_adapters)
    .order_by(entries.c.name, versions.c.number)
)
_TAGS = select(tags.c.version_id, tags.c.tag).order_by(tags.c.tag)
_ALIASES = (
    select(versions.c.id, aliases.c.alias)
    .join_from(
        versions,
        aliases,
        (aliases.c.entry_id == versions.c.entry_id) & (aliases.c.number == versions.c.number),
    )
    .order_by(aliases.c.alias)
)


def _grouped(rows: Iterable[Row[int, str]]) -> defaultdict[int, list[str]]:
    words: defaultdict[int, list[str]] = defaultdict(list)
    for version_id, word in rows:
        words[version_id].append(word)
    return words


def _summary(row: Row[*tuple[Any, ...]], tags_of: list[str], aliases_of: list[str]) -> AdapterSummary:
    return AdapterSummary(
        name=row.name,
        version=row.number,
        base=row.base,
        max_rank=row.max_rank,
        dtypes=tuple((row.dtypes or "").split()),
        weights_bytes=row.weights_bytes,
        license=row.license,
        verdict=Verdict(sound=row.sound, fusable=row.fusable),
        tags=tuple(tags_of),
        aliases=tuple(aliases_of),
        created_at=row.created_at,
    )
