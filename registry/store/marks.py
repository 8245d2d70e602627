"""Marks: which catalogs use a store, written in the store itself.

A catalog counts only its own references, so it must know that no other catalog uses the store before it
deletes anything. Each catalog leaves a file named by its digest before it publishes its first blob.
A store of this machine and one at a URL differ only in how such a file is written.

A store from before there were marks has blobs and no mark. A catalog that refers to all of these blobs
takes the store over. Where it does not, ``unknown`` is written beside its own mark: the mark of a catalog
that cannot be named, which counts as another catalog until ``store adopt`` removes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from typing import Protocol, TypeVar

from ...schemas.digest import Digest
from ...schemas.errors import StillInUse
from .blob import Blob

MARKS = "catalogs"
UNKNOWN = "unknown"
# Blobs per question, and per deleting transaction of the catalog, whose other writers wait meanwhile.
BATCH = 500
Item = TypeVar("Item")
_SHOWN = 5
_ADOPT = "if no other catalog uses the store, `meteora-registry store adopt` makes it this catalog's alone"

# Returns those of some digests that a version in the catalog refers to.
Referenced = Callable[[Collection[Digest]], Collection[Digest]]


class Owner(Protocol):
    """The questions of a store to a catalog."""

    def identify(self) -> Digest | None:
        """Return the identity of this catalog; None before anything was recorded in it."""

    def referenced(self, digests: Collection[Digest]) -> Collection[Digest]:
        """Return those of ``digests`` that a version refers to."""


class MarkedStore(ABC):
    """The marks of a store, kept wherever its blobs are kept."""

    @abstractmethod
    def list_blobs(self) -> Iterator[Blob]:
        """Yield every blob, ordered by digest."""

    @abstractmethod
    def list_marks(self) -> set[str]:
        """Return the name of every mark: a catalog's digest, or ``UNKNOWN``."""

    @abstractmethod
    def place_of_mark(self, name: str) -> str:
        """Return where a mark is kept, for people."""

    @abstractmethod
    def put_mark(self, name: str) -> None:
        """Write a mark, if it is not there; it is on the disk before this returns."""

    @abstractmethod
    def drop_mark(self, name: str) -> None:
        """Delete a mark, if it is there."""

    def mark(self, catalog: Digest, referenced: Referenced) -> None:
        """Leave a catalog's mark; called before its first blob is published.

        Raises:
            StoreUnavailable: the store cannot be read or written.
        """
        marks = self.list_marks()
        if catalog in marks:
            return
        if not marks and self._has_others(referenced) and not self.list_marks():
            # Written first: if this process dies here, those blobs are not taken for this catalog's.
            self.put_mark(UNKNOWN)
        self.put_mark(catalog)

    def settle(self, owner: Owner, *, dry_run: bool = False) -> None:
        """Pass if ``owner`` alone uses the store, taking over one without marks that has only its blobs.

        Raises:
            StillInUse: other catalogs use it, or may.
            StoreUnavailable: the store cannot be read or written.
        """
        # In this order, since a catalog has its identity before it leaves a mark.
        marks = self.list_marks()
        catalog = owner.identify()
        if catalog is not None and marks == {catalog}:
            return
        if marks <= {UNKNOWN, catalog} and not self._has_others(owner.referenced):
            if catalog is not None and not dry_run:
                self.put_mark(catalog)
                self.drop_mark(UNKNOWN)
            return
        # Another process may have left the first mark, and then its first blob, since the marks were read.
        catalog = owner.identify()
        self.require_sole(catalog)

    def require_sole(self, catalog: Digest | None) -> None:
        """Pass if this catalog, and no other, left its mark.

        Raises:
            StillInUse: what may be deleted is not known here.
        """
        marks = self.list_marks()
        if catalog is None or marks != {catalog}:
            raise StillInUse(
                f"{self._describe(marks, catalog)}, so what may be deleted is not known",
                hint=self._way_out(marks, catalog),
            )

    def adopt(self, catalog: Digest) -> None:
        """Make this catalog the only one that uses the store: leave its mark, and delete all others."""
        # First, so that a death in between leaves the store in use by others.
        self.put_mark(catalog)
        for name in sorted(self.list_marks() - {catalog}):
            self.drop_mark(name)

    def _has_others(self, referenced: Referenced) -> bool:
        return any(True for _ in unreferenced(self.list_blobs(), referenced))

    def _describe(self, marks: set[str], catalog: Digest | None) -> str:
        if not marks:
            return f"the store `{self}` has blobs that this catalog does not refer to, and no catalog's mark"
        if catalog is None or catalog not in marks:
            return f"the store `{self}` holds nothing of this catalog"
        others = marks - {catalog}
        if others == {UNKNOWN}:
            return (
                f"the store `{self}` has blobs from before catalogs left marks, and this catalog does not "
                "refer to all of them"
            )
        return f"the store `{self}` is also used by {len(others)} other catalog{'s'[: len(others) - 1]}"

    def _way_out(self, marks: set[str], catalog: Digest | None) -> str:
        others = sorted(marks - {catalog, UNKNOWN})
        if not others:
            return f"{_ADOPT}; otherwise name the catalog that does with `--catalog`"
        shown = ", ".join(f"`{self.place_of_mark(name)}`" for name in others[:_SHOWN])
        return f"give each catalog a store of its own; {_ADOPT} (marks of others: {shown})"


def unreferenced(blobs: Iterable[Blob], referenced: Referenced) -> Iterator[Blob]:
    """Yield the blobs that nothing refers to, asking about them in batches."""
    for batch in batches(blobs):
        needed = referenced([blob.sha256 for blob in batch])
        yield from (blob for blob in batch if blob.sha256 not in needed)


def batches(values: Iterable[Item], size: int = BATCH) -> Iterator[list[Item]]:
    """Yield the values in batches."""
    rest = iter(values)
    while batch := list(islice(rest, size)):
        yield batch
