"""The problems that an examination can find, by stable codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

_SHOWN = 5


class Code(StrEnum):
    """The kind of a problem; a code never changes its meaning."""

    HOME_PERMISSIONS = "home-permissions"
    CATALOG_MISSING = "catalog-missing"
    CATALOG_UNUSABLE = "catalog-unusable"
    CATALOG_SCHEMA = "catalog-schema"
    CATALOG_DAMAGED = "catalog-damaged"
    CATALOG_LEFTOVER = "catalog-leftover"
    STORE_UNAVAILABLE = "store-unavailable"
    STORE_LEFTOVER = "store-leftover"
    STORE_UNREFERENCED = "store-unreferenced"
    STORE_MISSING = "store-missing"
    STORE_DAMAGED = "store-damaged"
    STORE_UNREADABLE = "store-unreadable"
    STORE_PERMISSIONS = "store-permissions"
    STORE_STRAY = "store-stray"
    CACHE_DAMAGED = "cache-damaged"
    BUNDLE_GONE = "bundle-gone"
    BUNDLE_CHANGED = "bundle-changed"
    BUNDLE_LEFTOVER = "bundle-leftover"
    FILE_LEFTOVER = "file-leftover"
    TEMPORARY_LEFTOVER = "temporary-leftover"


@dataclass(frozen=True, slots=True)
class Mending:
    """A repair that can be done without a person's judgement.

    ``act`` does it. ``heals`` is False where a person has to do the rest.
    """

    deed: str
    act: Callable[[], object]
    heals: bool = True


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong; ``way_out`` is what a person can do."""

    code: Code
    subject: str
    found: str
    way_out: str
    mending: Mending | None = None

    def describe(self) -> str:
        """Return the problem in one line."""
        return f"{self.code}: {self.subject}: {self.found}"


def join_some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
