"""An opened bundle: its documents, header and members, each read and checked once; needs no torch."""

from __future__ import annotations

from .opened import Bundle

__all__ = ["Bundle"]
