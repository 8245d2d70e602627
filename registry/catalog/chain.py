"""The chain of events: each event carries a digest over itself and over the digest of the event before it.

So a later change to any event, and an event that was put in or taken out, breaks the chain at that place.
Someone who can write to the database can also compute the rest again; then the history no longer has
the digest that it ended with before. That digest, the head, is therefore to be kept elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from sqlalchemy import Connection, RowMapping, func, select

from ...schemas.digest import Digest
from .models import ADAPTER, adapter_versions, bundle_versions, entries, events, trash, trash_rows, versions

_BATCH_ROWS = 500
# The detail that states the content of a version, for each kind of entry, and the events that have it.
CONTENT = {"adapter": "weights_sha256", "bundle": "manifest_sha256"}
EXPLAINING = ("add", "rename", "restore")

_Version = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the history: the digest of its last event, and how many events it has."""

    digest: Digest
    events: int


@dataclass(frozen=True, slots=True)
class ChainCheck:
    """The outcome of a check: what is wrong, and how many events there are.

    ``since`` is how many events follow the head; None without a head, or if the history does not have it.
    """

    problems: tuple[str, ...]
    events: int
    since: int | None


def chain(previous: Digest | None, event: Mapping[str, Any]) -> Digest:
    """Return the digest of an event that follows the one with the digest ``previous``.

    The row's number takes no part: an export keeps it, but nothing refers to it.
    """
    values = [
        previous,
        event["at"].astimezone(UTC).isoformat(timespec="microseconds"),
        event["actor"],
        event["role"],
        event["action"],
        event["subject"],
        event["name"],
        event["version"],
        event["details"],
    ]
    return Digest.of_bytes(json.dumps(values, sort_keys=True, separators=(",", ":")).encode("ascii"))


def read_head(connection: Connection) -> Head | None:
    """Return the end of the history; None before there is an event."""
    last = select(events.c.digest).order_by(events.c.id.desc()).limit(1).scalar_subquery()
    digest, count = connection.execute(select(last, func.count()).select_from(events)).one()
    return None if digest is None else Head(digest, count)


def check_chain(connection: Connection, head: Digest | None = None) -> ChainCheck:
    """Compare every event with the one before it, and every version with the event that added it.

    ``connection`` is in a transaction that sees one state of the catalog throughout.
    """
    unexplained = dict(_list_content(connection))
    problems: list[str] = []
    previous, count, reached = None, 0, None
    query = select(events).order_by(events.c.id).execution_options(yield_per=_BATCH_ROWS)
    for row in connection.execute(query).mappings():
        count += 1
        if row["digest"] != chain(previous, dict(row)):
            problems.append(
                f"{_describe(row)} does not follow from the event before it: one of the two was changed, or "
                "events between them were removed or put in"
            )
        # What follows is compared with what is stored, so that each break is reported once.
        previous = row["digest"]
        reached = count if previous == head else reached
        problems += _compare_content(row, unexplained)
    problems += [f"`{name}@{number}` has no event that added it" for _, name, number in unexplained]
    if head is not None and reached is None:
        problems.append(
            f"the history does not have the head `{head}`: events up to it were changed or removed since it "
            "was printed, or it is another catalog's"
        )
    return ChainCheck(tuple(problems), count, None if reached is None else count - reached)


def _list_content(connection: Connection) -> Iterator[tuple[_Version, Digest]]:
    """Yield every version, in use or in the trash, and the digest of its content."""
    adapter = adapter_versions.c.weights_sha256
    query = (
        select(entries.c.kind, entries.c.name, versions.c.number, adapter, bundle_versions.c.manifest_sha256)
        .join(versions, versions.c.entry_id == entries.c.id)
        .outerjoin(adapter_versions, adapter_versions.c.id == versions.c.id)
        .outerjoin(bundle_versions, bundle_versions.c.id == versions.c.id)
        .order_by(versions.c.id)
    )
    for kind, name, number, weights, manifest in connection.execute(query):
        yield (kind, name, number), weights if kind == ADAPTER else manifest
    removed = (
        select(trash.c.kind, trash.c.name, trash.c.number, trash_rows.c.content)
        .join(trash_rows, trash_rows.c.trash_id == trash.c.id)
        .where(trash_rows.c.of_table.in_((adapter_versions.name, bundle_versions.name)))
    )
    for kind, name, number, content in connection.execute(removed):
        # A damaged row is a problem of the trash.
        if isinstance(content, dict) and CONTENT[kind] in content:
            yield (kind, name, number), content[CONTENT[kind]]


def _compare_content(event: RowMapping, unexplained: dict[_Version, Digest]) -> Iterator[str]:
    """Yield that a version has other content than its event states; the version is explained either way."""
    if event["action"] not in EXPLAINING:
        return
    found = unexplained.pop((event["subject"], event["name"], event["version"]), None)
    stated = event["details"].get(CONTENT.get(event["subject"], ""))
    if found is not None and found != stated:
        yield f"`{event['name']}@{event['version']}` has the content `{found}`, but was added with `{stated}`"


def _describe(event: RowMapping) -> str:
    version = "" if event["version"] is None else f"@{event['version']}"
    return f"event {event['id']} (`{event['action']}` of `{event['name']}{version}`)"
