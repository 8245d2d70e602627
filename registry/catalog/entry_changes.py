"""Changes of a name: the name itself, and the note and the owner that people state.

A name never gives a version number to two contents, so that ``name@3`` in an old message, a recipe or an
event means what it meant. A name that was left keeps its counter, and one that was used before is taken only
where its numbers had these very contents.
"""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from ...schemas.digest import Digest
from ...schemas.errors import AlreadyInCatalog, UsageError
from ...schemas.facts import BundleFacts
from ...schemas.names import MEMBER_MARK, CatalogSource, check_name, member_entry
from . import models
from .chain import CONTENT, EXPLAINING
from .column_types import clean_foreign_text
from .entries import find_entry, find_latest, find_version, taken
from .events import PREVIOUS, record_event
from .search_index import index_rename, index_words

MAX_NOTE_CHARACTERS = 500
MAX_OWNER_CHARACTERS = 100
# No name that a person or a bundle chooses; held for a moment while two names are exchanged.
_NO_NAME = "-"


def rename(session: Session, name: str, new: str) -> tuple[CatalogSource, ...]:
    """Call an adapter or a bundle by another name from now on, and return its versions.

    The members of a pulled bundle, which are called after it, follow.

    Raises:
        NotInCatalog: there is nothing of that name.
        AlreadyInCatalog: something has the new name, or had it.
        UsageError: the new name is malformed, or the old one is that of a member.
    """
    check_name(new, what="new name")
    if MEMBER_MARK in name:
        raise UsageError(
            f"`{name}` is called after its bundle",
            hint=f"give it a name of your own with `meteora-registry adopt {name} --name {new}`",
        )
    entry = find_version(session, CatalogSource(name), models.Version).entry
    if name == new:
        raise AlreadyInCatalog(f"`{name}` has that name already", hint="choose another name")
    sources = _move(session, entry, new)
    if entry.kind == models.BUNDLE:
        members = session.scalars(
            select(models.Entry).where(models.Entry.name.startswith(name + MEMBER_MARK, autoescape=True))
        )
        for each in members.all():
            if find_latest(session, each) is not None:
                _move(session, each, member_entry(new, each.name.partition(MEMBER_MARK)[2]))
    return sources


def edit(session: Session, name: str, *, note: str | None, owner: str | None) -> CatalogSource:
    """State a note or an owner of a name, or take it away with an empty text; None leaves it as it is.

    Raises:
        NotInCatalog: there is nothing of that name.
        UsageError: a text is too long.
    """
    version = find_version(session, CatalogSource(name), models.Version)
    entry = version.entry
    stated = {
        "note": _one_line(note, "note", MAX_NOTE_CHARACTERS),
        "owner": _one_line(owner, "owner", MAX_OWNER_CHARACTERS),
    }
    before = {"note": entry.note, "owner": entry.owner}
    changed = {key: text or None for key, text in stated.items() if text is not None}
    changed = {key: text for key, text in changed.items() if text != before[key]}
    if changed:
        for key, text in changed.items():
            setattr(entry, key, text)
        previous = {key: before[key] for key in changed}
        record_event(session, "edit", entry.kind, entry.name, None, **changed, previous=previous)
        session.flush()
        if entry.kind == models.ADAPTER:
            for each in entry.versions:
                index_words(session, each.id)
    return CatalogSource(name)


def _one_line(text: str | None, what: str, most: int) -> str | None:
    if text is None:
        return None
    line = " ".join(text.split())
    if len(line) > most:
        raise UsageError(f"the {what} has {len(line)} characters, expected at most {most}")
    return clean_foreign_text(line)


def _move(session: Session, entry: models.Entry, new: str) -> tuple[CatalogSource, ...]:
    old, reached = entry.name, entry.latest_version
    there = find_entry(session, new)
    if there is not None and find_latest(session, there) is not None:
        raise taken(there, hint="choose another name")
    contents = {each.number: _content_of(each) for each in entry.versions}
    _check_never_another(session, entry.kind, new, contents)
    if there is None:
        there = models.Entry(kind=entry.kind, latest_version=reached)
    else:
        there.name = _NO_NAME
        session.flush()
        entry.latest_version = max(reached, there.latest_version)
    entry.name = new
    session.flush()
    there.name, there.latest_version = old, reached
    session.add(there)
    session.flush()
    if entry.kind == models.ADAPTER:
        index_rename(session, old, new)
        for each in entry.versions:
            index_words(session, each.id)
    _record(session, entry, old, contents)
    return tuple(CatalogSource(new, number) for number in contents)


def _record(session: Session, entry: models.Entry, old: str, contents: dict[int, Digest]) -> None:
    """Add an event under the old name, and one for each version under the new one, with its content."""
    record_event(session, "rename", entry.kind, old, None, to=entry.name)
    for number, digest in contents.items():
        details: dict[str, Any] = {CONTENT[entry.kind]: str(digest), PREVIOUS: f"{old}@{number}"}
        record_event(session, "rename", entry.kind, entry.name, number, **details)


def _content_of(version: models.Version) -> Digest:
    facts = cast("models.BundleVersion | models.AdapterVersion", version).facts
    return facts.manifest_sha256 if isinstance(facts, BundleFacts) else facts.weights_sha256


def _check_never_another(session: Session, kind: str, name: str, contents: dict[int, Digest]) -> None:
    """Refuse a name under which one of these version numbers once had another content."""
    used = session.scalars(
        select(models.Event).where(
            models.Event.name == name,
            models.Event.version.in_(contents),
            models.Event.action.in_(EXPLAINING),
        )
    )
    for event in used:
        number = event.version or 0
        if event.subject != kind or event.details.get(CONTENT[kind]) != str(contents[number]):
            raise AlreadyInCatalog(
                f"`{name}@{number}` was something else before, and a version never comes to be another",
                hint="choose a name that was not used",
            )
