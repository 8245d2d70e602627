"""The flat storage of one linear's adapters, and the legend of shapes for every kernel module.

    T   tokens (all leading dimensions of ``x`` flattened)
    h   input features of the linear
    D   output features of the linear
    d   the features of whichever operand is meant, h or D
    L   adapters of the linear: the members of a bundle
    R   rank; ``R_i`` of adapter ``i``, after padding; 0 for an adapter that is absent there
    N   all ranks together, ``sum R_i``
    k   slots of one token, as a dimension; a parameter that chooses k is called ``top_k``
    S   in ``slots.py`` the rows of all slots together; in the GPU's modules the parts of a split sum

A *slot* is one of the k places of a token, and holds an adapter and a weight. The *factors* are A and Bt.

Storage is flat: ``A [N, h]`` and ``Bt [N, D]`` (B transposed), the rows of adapter ``i`` being
``offsets[i] : offsets[i + 1]`` of both. Adapter ``i`` contributes ``scaling[i] * (x A_i^T) Bt_i``; the
scaling stays a Python float until it meets an fp32 product, so that no cast of the factors rounds it.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Offsets and scalings of one linear's adapters, with what the kernels derive from them.

    `layout_of` keeps one object per layout, so that equality and hash are the object's own: hashing 512
    adapters at each look-up would cost more than some calls do.
    """

    offsets: tuple[int, ...]
    scaling: tuple[float, ...]
    ranks: tuple[int, ...]
    max_rank: int
    equal_ranks: bool

    @property
    def adapters(self) -> int:
        """L, absent adapters included."""
        return len(self.scaling)

    @property
    def rows(self) -> int:
        """N, the rows of A and of Bt."""
        return self.offsets[-1]


@dataclass(frozen=True, slots=True)
class LayoutTensors:
    """A layout as tensors on one device.

    Attributes:
        starts: int64 [L], each adapter's first row.
        ranks: int64 [L].
        scaling: [L].
        owners: int32 [N], each row's adapter.
        rows: int64 [N], 0 .. N - 1.
    """

    starts: Tensor
    ranks: Tensor
    scaling: Tensor
    owners: Tensor
    rows: Tensor


def layout_of(offsets: Sequence[int], scaling: Sequence[float]) -> Layout:
    """Return the checked layout; the same offsets and scaling cost one look-up the second time.

    Raises:
        ValueError: if the offsets do not start at 0, fall, or do not match the number of scalings, or
            if a scaling is not finite.
    """
    return _layout(tuple(offsets), tuple(scaling))


@functools.lru_cache(maxsize=4096)
def _layout(offsets: tuple[int, ...], scaling: tuple[float, ...]) -> Layout:
    _check_layout(offsets, scaling)
    ranks = tuple(end - start for start, end in itertools.pairwise(offsets))
    return Layout(offsets, scaling, ranks, max(ranks), equal_ranks=len(set(ranks)) == 1)


def _check_layout(offsets: tuple[int, ...], scaling: tuple[float, ...]) -> None:
    if not scaling:
        raise ValueError("`scaling` is empty, expected one float per adapter and at least one adapter")
    if len(offsets) != len(scaling) + 1:
        raise ValueError(
            f"`offsets` has {len(offsets)} entries for {len(scaling)} adapters, expected "
            f"{len(scaling) + 1}: where each adapter's rows start, then where the last ends"
        )
    if offsets[0] != 0:
        raise ValueError(f"`offsets` starts at {offsets[0]}, expected 0")
    for index, (start, end) in enumerate(itertools.pairwise(offsets)):
        if end < start:
            raise ValueError(
                f"`offsets` falls from {start} to {end} at adapter {index}, expected offsets that never "
                "fall; an adapter that is absent repeats its start"
            )
    for index, value in enumerate(scaling):
        if not math.isfinite(value):
            raise ValueError(f"`scaling` of adapter {index} is {value}, expected a finite number")


@functools.lru_cache(maxsize=4096)
def layout_tensors(layout: Layout, device: torch.device, dtype: torch.dtype) -> LayoutTensors:
    """Return the layout's tensors on `device`, made once and kept.

    On a GPU they are kept for as long as the process runs, some kilobytes for each different layout: a
    captured CUDA graph has their addresses alone, and would go on reading memory that was given to another.
    The first call copies from the host, which a capture cannot hold: call once before capturing.

    Raises:
        RuntimeError: the tensors are not there yet and a CUDA graph is being captured.
    """
    make = _make_tensors if device.type == "cpu" else _kept_tensors
    return make(layout.offsets, layout.scaling, device, dtype)


def _make_tensors(
    offsets: tuple[int, ...], scaling: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> LayoutTensors:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"the offsets and scalings of these {len(scaling)} adapters are not on `{device}` yet, and "
            "cannot be copied there while a CUDA graph is captured; call once with the same adapters first"
        )
    # Outside inference mode, so that a layout first met there can still serve a training step.
    with torch.inference_mode(mode=False):
        starts = torch.tensor(offsets, dtype=torch.int64, device="cpu")
        ranks = starts.diff()
        owners = torch.repeat_interleave(torch.arange(len(scaling), dtype=torch.int32, device="cpu"), ranks)
        return LayoutTensors(
            starts[:-1].to(device),
            ranks.to(device),
            torch.tensor(scaling, dtype=dtype, device=device),
            owners.to(device),
            torch.arange(offsets[-1], dtype=torch.int64, device=device),
        )


# By value: a layout that was evicted and comes again finds its tensors.
_kept_tensors = functools.cache(_make_tensors)
