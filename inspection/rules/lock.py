"""Rules about the bytes that a lock has as reviewed."""

from __future__ import annotations

from ...schemas.finding import Effect
from ...schemas.quotation import quote_name
from ..lock import LockCase
from .rule import Observation, Observations, rule

_WHY = "with `--locked` only bytes that were reviewed pass, and the lock has the digests of those"
_REMEDY = "review the adapter, then write the lock again with `--write-lock`"


@rule("MR707", LockCase, Effect.POLICY, why=_WHY, remedy=_REMEDY)
def adapter_is_not_locked(case: LockCase) -> Observations:
    """The lock does not have this adapter."""
    if case.locked is None:
        yield Observation(f"no entry for {quote_name(case.name)}", "the digests of its files")


@rule("MR708", LockCase, Effect.POLICY, why=_WHY, remedy=_REMEDY)
def file_is_not_the_locked_one(case: LockCase) -> Observations:
    """A file is not the one that was reviewed."""
    if case.locked is None:
        return
    for name in sorted({*case.locked.files, *case.files}):
        expected, found = case.locked.files.get(name), case.files.get(name)
        if expected != found:
            yield Observation(
                f"`{found}`" if found else "no file",
                f"`{expected}`" if expected else "no file of this name",
                file=name,
            )
