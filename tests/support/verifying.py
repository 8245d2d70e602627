"""Verify a bundle in a test, and say what must be wrong with it."""

from __future__ import annotations

from pathlib import Path

from meteora_registry.fuser.fuse_member import Member
from meteora_registry.fuser.verifier import verify_bundle
from meteora_registry.schemas.verification import Level, Outcome, VerificationRecord
from support.members import files_of


def check(bundle: Path, members: list[Member] | None = None) -> VerificationRecord:
    """Verify at level source when the members are given, else at integrity."""
    if members is None:
        return verify_bundle(bundle, level=Level.INTEGRITY)
    return verify_bundle(bundle, level=Level.SOURCE, sources=files_of(members))


def assert_fails(record: VerificationRecord, text: str) -> None:
    assert record.outcome is Outcome.FAIL
    assert any(text in problem for problem in record.problems), record.problems
