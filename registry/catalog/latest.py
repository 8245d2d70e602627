"""The latest version of every name, in plain SQL that any connection can run.

So `list` reads a catalog in a file without SQLAlchemy, whose import takes longer than all the rest of it.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...schemas.facts import ListedFacts
from ...schemas.finding import Verdict
from ...schemas.verification import Level, Outcome
from .records import AdapterSummary, BundleSummary, LatestVersions
from .sqlite_file import reading

Rows = Iterable[Sequence[Any]]

_FACTS = tuple(field.name for field in dataclasses.fields(ListedFacts))
# By the name that SQLAlchemy has for a database.
_JOIN = {"sqlite": "group_concat", "postgresql": "string_agg"}
# Neither tags nor aliases have a space.
_NAMED = """
SELECT v.id, e.name, v.number,
    (SELECT {join}(tag, ' ') FROM tags WHERE version_id = v.id),
    (SELECT {join}(alias, ' ') FROM aliases WHERE entry_id = v.entry_id AND number = v.number),
    e.owner, {columns}
FROM {table} facts JOIN versions v ON v.id = facts.id JOIN entries e ON e.id = v.entry_id
WHERE {condition} ORDER BY e.name, v.number
"""
_LATEST = (
    "NOT EXISTS (SELECT 1 FROM versions newer WHERE newer.entry_id = v.entry_id AND newer.number > v.number)"
)
_ADAPTER = ["coalesce(stated_base, declared_base)", "sound", "fusable", "v.created_at", *_FACTS]
_BUNDLE = ["base", "dtype", "size_bytes", "gate_fitted", "manifest_sha256"]
# What a bundle only claims of itself is not shown as verified.
_VERIFICATIONS = (
    "SELECT bundle_version_id, level, outcome FROM verifications WHERE claimed_by IS NULL ORDER BY id"
)
# Of those that compare with the members the largest counts, of equal ones the last: it is read last.
_EVALUATIONS = (
    "SELECT manifest_sha256, of_members FROM evaluations WHERE of_members IS NOT NULL "
    "ORDER BY items, created_at, id"
)


def adapters_statement(database: str, condition: str = _LATEST) -> str:
    """Return the statement whose rows ``read_adapter`` takes: ordered by name and number.

    Args:
        database: ``sqlite`` or ``postgresql``.
        condition: which versions; ``v`` is their row of ``versions``.
    """
    return _named(database, "adapter_versions", _ADAPTER, condition)


def _named(database: str, table: str, columns: Sequence[str], condition: str) -> str:
    return _NAMED.format(join=_JOIN[database], table=table, columns=", ".join(columns), condition=condition)


def read_adapter(row: Sequence[Any]) -> AdapterSummary:
    """Return the summary in a row of ``adapters_statement``."""
    _, name, number, tags, aliases, owner, base, sound, fusable, created_at, *values = row
    facts = dict(zip(_FACTS, values, strict=True))
    facts["dtypes"] = tuple((facts["dtypes"] or "").split())
    return AdapterSummary(
        **facts,
        name=name,
        version=number,
        base=base,
        verdict=Verdict(sound=bool(sound), fusable=bool(fusable)),
        tags=_words(tags),
        aliases=_words(aliases),
        owner=owner,
        created_at=_moment(created_at),
    )


def read_latest(execute: Callable[[str], Rows], database: str) -> LatestVersions:
    """Return the latest version of every name; ``execute`` runs a statement, each in the same transaction."""
    adapters = tuple(map(read_adapter, execute(adapters_statement(database))))
    outcomes: defaultdict[int, list[tuple[Level, Outcome]]] = defaultdict(list)
    for bundle, level, outcome in execute(_VERIFICATIONS):
        outcomes[bundle].append((Level(level), Outcome(outcome)))
    scores: dict[str, float] = dict(map(tuple, execute(_EVALUATIONS)))
    bundles = []
    for row in execute(_named(database, "bundle_versions", _BUNDLE, _LATEST)):
        bundle, name, number, tags, aliases, owner, base, dtype, size_bytes, gate_fitted, manifest = row
        verified = tuple(outcomes[bundle])
        bundles.append(
            BundleSummary(
                name,
                number,
                base,
                dtype,
                size_bytes,
                gate_fitted,
                verified,
                _words(tags),
                _words(aliases),
                owner,
                scores.get(manifest),
            )
        )
    return LatestVersions(adapters, tuple(bundles))


def list_file(path: Path) -> LatestVersions:
    """Return the latest version of every name in a catalog on SQLite.

    Raises:
        CatalogUnusable: it cannot be opened, is damaged, or its schema is not this version's.
    """
    with reading(path) as connection:
        return read_latest(connection.execute, "sqlite")


def _words(joined: str | None) -> tuple[str, ...]:
    return tuple(sorted((joined or "").split()))


def _moment(value: datetime | str) -> datetime:
    """Return a moment in UTC; SQLite has it as text without a zone."""
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    # As a number where it looks like one, whatever was written.
    return datetime.fromisoformat(str(value)).replace(tzinfo=UTC)
