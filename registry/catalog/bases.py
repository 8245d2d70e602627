"""Base models and the ways in which adapters spell them.

``schemas.base_name`` knows the spellings that are one base everywhere. Beyond these the catalog learns one
when a person states the base of an adapter that declares another name: from then on it knows both names for
one base. A path is never a spelling, because it means something else on every machine; nor is a quantised
copy, which has other weights. Spellings group adapters for people; they change nothing about an adapter.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from ...schemas.base_name import is_hub_id, is_quantised_copy, names_of, present_name
from . import models
from .column_types import clean_foreign_text
from .events import record_event


def resolve_base(session: Session, stated: str | None, declared: str | None) -> models.BaseModel | None:
    """Return the base model of an adapter, recorded if it is new; None if neither text names one."""
    name = next((each for each in (stated, declared) if each is not None and is_hub_id(each)), None)
    if name is None:
        return None
    base = _find(session, name) or _create(session, name)
    if declared is not None and name == stated and _is_new_spelling(session, declared):
        _learn(session, base, declared)
    return base


def _is_new_spelling(session: Session, name: str) -> bool:
    return is_hub_id(name) and not is_quantised_copy(name) and _find(session, name) is None


def find_base_ids(session: Session, spelling: str) -> tuple[int, ...]:
    """Return the ids of the base model with this spelling, the oldest first.

    There are several only in a catalog that took two spellings of one base for two.
    """
    keys = {_key(name) for name in names_of(spelling)}
    found = session.scalars(
        select(models.BaseSpelling.base_model_id)
        .where(models.BaseSpelling.spelling_key.in_(keys))
        .order_by(models.BaseSpelling.id)
    )
    return tuple(dict.fromkeys(found))


def name_of_base(session: Session, spelling: str) -> str | None:
    """Return what the catalog calls the base with this spelling; None if it does not know the base."""
    found = _find(session, spelling)
    return found.name if found else None


def _find(session: Session, spelling: str) -> models.BaseModel | None:
    ids = find_base_ids(session, spelling)
    return session.get(models.BaseModel, ids[0]) if ids else None


def _create(session: Session, name: str) -> models.BaseModel:
    base = models.BaseModel(name=present_name(name))
    session.add(base)
    _learn(session, base, base.name)
    return base


def _learn(session: Session, base: models.BaseModel, spelling: str) -> None:
    base.spellings.append(models.BaseSpelling(spelling=spelling, spelling_key=_key(spelling)))
    session.flush()
    record_event(session, "spelling", "base", base.name, spelling=spelling)


def _key(spelling: str) -> str:
    return clean_foreign_text(spelling).casefold()
