"""Base models and the ways in which adapters spell them.

A spelling is learned when a person states the base of an adapter that declares another name: from then on the
catalog knows both names for one base. A path is never a spelling, because it means something else on every
machine. Spellings group adapters for people; they change nothing about an adapter.
"""

from __future__ import annotations

import re

from sqlalchemy import select
from sqlalchemy.orm import Session

from . import models
from .column_types import clean_foreign_text
from .events import record_event

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB_NAME = re.compile(rf"{_PART}(/{_PART})?")


def resolve_base(session: Session, stated: str | None, declared: str | None) -> models.BaseModel | None:
    """Return the base model of an adapter, recorded if it is new; None if neither text names one."""
    name = next((each for each in (stated, declared) if each is not None and _HUB_NAME.fullmatch(each)), None)
    if name is None:
        return None
    base = _find(session, name) or _create(session, name)
    is_another = declared is not None and stated is not None and name == stated
    if is_another and declared and _HUB_NAME.fullmatch(declared) and _find(session, declared) is None:
        _learn(session, base, declared)
    return base


def find_base_id(session: Session, spelling: str) -> int | None:
    """Return the id of the base model with this spelling; None if the catalog has none."""
    key = models.BaseSpelling.spelling_key
    return session.scalar(select(models.BaseSpelling.base_model_id).where(key == _key(spelling)))


def _find(session: Session, spelling: str) -> models.BaseModel | None:
    row = session.scalars(
        select(models.BaseSpelling).where(models.BaseSpelling.spelling_key == _key(spelling))
    ).one_or_none()
    return row.base_model if row else None


def _create(session: Session, name: str) -> models.BaseModel:
    base = models.BaseModel(name=name)
    session.add(base)
    _learn(session, base, name)
    return base


def _learn(session: Session, base: models.BaseModel, spelling: str) -> None:
    base.spellings.append(models.BaseSpelling(spelling=spelling, spelling_key=_key(spelling)))
    session.flush()
    record_event(session, "spelling", "base", base.name, spelling=spelling)


def _key(spelling: str) -> str:
    return clean_foreign_text(spelling).casefold()
