"""What several commands say of a bundle, in the same words."""

from __future__ import annotations

from ...schemas.verification import VerificationRecord
from .output import print_line, print_remark


def print_gate_remark() -> None:
    """Say on stderr that a gate is not fitted, and what can be done."""
    print_remark(
        "note: the gate is not fitted: left to itself the bundle often picks the wrong adapter; fit it with "
        "`meteora-registry gate fit`, or force one with meteora_registry.runtime.force_adapter"
    )


def print_verified(record: VerificationRecord) -> None:
    """Say how a bundle that was just written verified; it passed, so some backend was measured."""
    errors = [run.max_error for run in record.backends_run if run.max_error is not None]
    print_line(f"verified: level {record.level}, {record.outcome}, largest error {max(errors):.1e}")
