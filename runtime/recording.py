"""Having a model's routings written down for a block of code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .active import only_router
from .record import RoutingRecord


@contextmanager
def routing(model: nn.Module) -> Iterator[RoutingRecord]:
    """Within the block what the model's one active bundle routes is written down, in the record given.

    Blocks nest; the innermost alone is written.

    Raises:
        UsageError: the model has no active bundle, or more than one.
    """
    router = only_router(model)
    before, router.record = router.record, RoutingRecord(router.members)
    try:
        yield router.record
    finally:
        router.record = before
