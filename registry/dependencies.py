"""The optional parts of the package, asked for before they are imported."""

from __future__ import annotations

import importlib.util

from ..schemas.errors import MissingDependency


def require_torch(purpose: str) -> None:
    """Pass if torch is installed.

    Raises:
        MissingDependency: it is not; the message says what it was needed for.
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingDependency(
            f"{purpose} needs torch, which is not installed", hint="pip install 'meteora-registry[runtime]'"
        )
