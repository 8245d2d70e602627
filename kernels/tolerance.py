"""How far each dtype may be from the float64 reference: one table, read by the tests and the verifier.

Errors are ``max|e| / max|reference|`` over one tensor, and the reference reads the very operands the
kernel reads, so that what is judged is the arithmetic and not the cast of the factors. The largest error
measured over the test suite stands beside each bound.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCES: dict[torch.dtype, float] = {
    # Measured 7e-7 on the CPU, 9e-7 in Triton's interpreter; 4096 features.
    torch.float32: 1e-5,
    # Measured 6e-3 on the CPU: z and its weighted copy are each rounded to 8 bits. 9e-3 in the interpreter,
    # whose stores truncate.
    torch.bfloat16: 2e-2,
    # Measured 4e-4 on the CPU, 5e-4 in the interpreter.
    torch.float16: 2e-3,
    # Measured 6e-16.
    torch.float64: 1e-12,
}


def gradient_tolerance(dtype: torch.dtype, grad: Tensor) -> float:
    """Return the bound of a gradient of a call in `dtype`.

    Twice the output's, since two rounded products meet in it; the dtype of the gradient itself where that is
    coarser (fp32 weights in a float64 call).
    """
    return 2 * max(TOLERANCES[dtype], TOLERANCES[grad.dtype])


def relative_error(found: Tensor, reference: Tensor) -> float:
    """Return ``max|found - reference| / max|reference|``; inf when `found` is not finite where it should be.

    A reference that is zero everywhere asks for exact zeros: the error is then 0.0 or inf.
    """
    if not reference.numel():
        return 0.0
    difference = (found.double() - reference.double()).abs().max().item()
    scale = reference.double().abs().max().item()
    if difference != difference:
        return float("inf")
    if scale == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return float(difference / scale)
