"""An opened bundle: its documents, header and members, each read and checked once; needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .opened import Bundle

__all__ = ["Bundle"]


def __getattr__(name: str) -> Any:
    """Import ``Bundle`` when it is first used: every command loads the signers, which need none of it."""
    if name != "Bundle":
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    from .opened import Bundle

    return Bundle
