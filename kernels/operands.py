"""The checks of the kernels' operands: every shape and dtype is checked here once, and nowhere behind.

No value is read here. On the CPU the selection's values are read, and checked, at their first use; on a GPU
that would stop the host until the device catches up, and the Triton kernels visit no adapter that does
not exist.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FACTOR_DTYPES = (*TRITON_DTYPES, torch.float64)


def check_operands(
    x: Tensor,
    A: Tensor,
    Bt: Tensor,
    offsets: Sequence[int],
    scaling: Sequence[float],
    selection: Tensor,
    weights: Tensor,
) -> None:
    """Refuse operands that do not fit together; offsets and scaling are checked by `layout_of`.

    Raises:
        ValueError: naming the operand, what was found, what was expected and the way out.
    """
    check_factors(x, A, Bt, offsets)
    _check_routing(x, selection, weights, adapters=len(scaling))


def check_factors(x: Tensor, A: Tensor, Bt: Tensor, offsets: Sequence[int]) -> None:
    """Refuse factors that do not fit x [..., h] or one another.

    Raises:
        ValueError: as `check_operands`.
    """
    dtype = x.dtype
    if dtype not in FACTOR_DTYPES:
        raise ValueError(f"`x` is {dtype}, expected one of {', '.join(map(str, FACTOR_DTYPES))}")
    if A.dtype != dtype or Bt.dtype != dtype:
        raise ValueError(
            f"`x`, `A` and `Bt` are {dtype}, {A.dtype} and {Bt.dtype}, expected one dtype; "
            "cast `x` to the factors' dtype before the call"
        )
    if not x.device == A.device == Bt.device:
        _refuse_devices(x, A=A, Bt=Bt)
    rows, features = offsets[-1], x.shape[-1] if x.ndim else 0
    if x.ndim < 1 or A.shape != (rows, features) or Bt.ndim != 2 or Bt.shape[0] != rows:
        _refuse_shapes(x, A, Bt, rows=rows)
    if not (A.is_contiguous() and Bt.is_contiguous()):
        raise ValueError("`A` or `Bt` is a strided view, expected contiguous rows; call `.contiguous()` once")


def check_gate_serves(gate: Tensor, bias: Tensor | None, x: Tensor, *, adapters: int) -> None:
    """Refuse a gate [L, h] that chooses among other adapters than there are, or is on another device than x.

    Raises:
        ValueError: naming both numbers, or both devices.
    """
    if gate.shape[0] != adapters:
        raise ValueError(
            f"`gate` chooses among {gate.shape[0]} adapters, expected {adapters}, as in `scaling`"
        )
    if not gate.is_contiguous():
        raise ValueError("`gate` is a strided view, expected contiguous rows; call `.contiguous()` once")
    if gate.device != x.device:
        _refuse_devices(x, gate=gate)
    if bias is not None and bias.device != x.device:
        _refuse_devices(x, bias=bias)


def check_output(out: Tensor, x: Tensor, Bt: Tensor) -> None:
    """Refuse an `out` that cannot be added into: it must be [..., D] like the result, and writable.

    Raises:
        ValueError: if its shape, dtype or device differs from the result's.
    """
    found, shape, features = out.shape, x.shape, Bt.shape[1]
    # Slices of shapes cost a microsecond: none is made where the linear is square.
    if found != shape or shape[-1] != features:
        expected = (*shape[:-1], features)
        if found != expected:
            raise ValueError(f"`out` is {list(found)}, expected {list(expected)}")
    if out.dtype != x.dtype:
        raise ValueError(f"`out` is {out.dtype} for `x` {x.dtype}, expected one dtype; cast `x` first")
    if out.device != x.device:
        _refuse_devices(x, out=out)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which products are summed and z is kept: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def multipliable(tensor: Tensor) -> Tensor:
    """Return fp16 as fp32: z would overflow it, and CPUs without arithmetic for it are slow at it."""
    return tensor.to(multiplied_dtype(tensor.dtype))


def multiplied_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which matrix products of that dtype are computed."""
    return torch.float32 if dtype == torch.float16 else dtype


def _refuse_devices(x: Tensor, **others: Tensor) -> None:
    for name, tensor in others.items():
        if tensor.device != x.device:
            raise ValueError(f"`{name}` is on {tensor.device} and `x` on {x.device}, expected one device")


def _refuse_shapes(x: Tensor, A: Tensor, Bt: Tensor, *, rows: int) -> None:
    if x.ndim < 1 or A.ndim != 2 or Bt.ndim != 2:
        raise ValueError(
            f"`x`, `A` and `Bt` are {list(x.shape)}, {list(A.shape)} and {list(Bt.shape)}, expected "
            "[..., h], [N, h] and [N, D]"
        )
    if A.shape[1] != x.shape[-1]:
        raise ValueError(f"`A` has {A.shape[1]} columns, expected {x.shape[-1]}, the last dimension of `x`")
    for name, found in (("A", A.shape[0]), ("Bt", Bt.shape[0])):
        if found != rows:
            raise ValueError(
                f"`{name}` has {found} rows, expected {rows}, where the last of `offsets` ends; "
                "Bt is B transposed"
            )


def _check_routing(x: Tensor, selection: Tensor, weights: Tensor, *, adapters: int) -> None:
    if selection.dtype != torch.int64:
        raise ValueError(f"`selection` is {selection.dtype}, expected torch.int64")
    if weights.dtype != torch.float32 and weights.dtype != accumulation_dtype(x.dtype):
        raise ValueError(
            f"`weights` is {weights.dtype}, expected torch.float32; keep routing out of autocast"
        )
    if not x.device == selection.device == weights.device:
        _refuse_devices(x, selection=selection, weights=weights)
    if selection.shape != weights.shape:
        raise ValueError(
            f"`selection` is {list(selection.shape)} and `weights` {list(weights.shape)}, expected one shape"
        )
    if selection.ndim != x.ndim or selection.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"`selection` is {list(selection.shape)} for `x` {list(x.shape)}, expected "
            f"{[*x.shape[:-1], 'k']}: k adapters for each token"
        )
    if not 1 <= selection.shape[-1] <= adapters:
        raise ValueError(
            f"`selection` names {selection.shape[-1]} adapters per token, expected 1 to {adapters}, "
            "the adapters known here"
        )
