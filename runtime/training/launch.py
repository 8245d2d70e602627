"""The ways of launching processes in which gates can be trained, as the launcher states them."""

from __future__ import annotations

import os

from ...schemas.errors import UsageError
from ..processes import process_count, uses_fsdp
from .options import TrainingOptions


def check_launch(options: TrainingOptions) -> None:
    """Check that gates can be trained in the processes that were launched, before anything is computed.

    Raises:
        UsageError: the batch cannot be divided among them, gates could not be read back whole from the way in
            which the model would be divided, or they would be trained in another type than float32.
    """
    if options.batch_size % process_count():
        raise UsageError(
            f"a batch of {options.batch_size} samples cannot be divided among {process_count()} processes",
            hint="choose a multiple with `--batch-size`",
        )
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise UsageError("gates are not trained with DeepSpeed", hint="launch with FSDP, version 2")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in ("no", "bf16"):
        # That of float16 leaves out steps whose gradient overflows, and a checkpoint does not have its scale.
        raise UsageError(
            f"gates are trained with mixed precision `no` or `bf16`, found `{precision}`",
            hint="launch with `--mixed_precision no`",
        )
    if uses_fsdp():
        _check_fsdp(precision)


def _check_fsdp(precision: str) -> None:
    # accelerate's own default.
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise UsageError(
            f"gates are trained with FSDP of version 2, found version {version}",
            hint="launch with `--fsdp_version 2`",
        )
    if precision != "no":
        # It would give each layer its gates in that type.
        raise UsageError(
            f"gates are trained in float32, found FSDP with mixed precision `{precision}`",
            hint="launch with `--mixed_precision no`; the base keeps the element type of its files",
        )
