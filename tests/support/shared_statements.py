"""Statements compiled once for all catalogs on SQLite; else each command would compile them again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa


def share_statements(create_engine: Callable[..., sa.Engine]) -> Callable[..., sa.Engine]:
    """Return what creates engines of which those for SQLite have one dialect and what is compiled for it."""
    shared = sa.create_engine("sqlite://")
    # The dialect learns on its first connection what the library can do.
    shared.connect().close()

    def create(*arguments: Any, **options: Any) -> sa.Engine:
        engine = create_engine(*arguments, **options)
        if engine.dialect.name == "sqlite":
            engine.dialect = shared.dialect
            engine._compiled_cache = shared._compiled_cache
        return engine

    return create
