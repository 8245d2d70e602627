"""Calls captured in one CUDA graph, for measurements: the GPU's time without the host's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

WARM_UP_CALLS = 2


def captured(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """Return a call that replays `calls`, one after another, as one CUDA graph.

    A graph's own launch takes as long as a small kernel: several calls share it, and where each has operands
    of its own, they are as cold as in a model. All are called before, for what a capture cannot hold.

    Raises:
        RuntimeError: if a call cannot be captured, because it reads a value on the host.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_CALLS):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay
