"""The Triton kernels on one module of a bundle, against float64.

On a GPU this is what inference runs; elsewhere Triton's interpreter computes the same kernels on the CPU,
slowly and in a process of its own, so that one module has to do. The record says which it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..bundle import Bundle
from ..kernels.tolerance import TOLERANCES, relative_error
from ..kernels.triton_check import TritonRunError, TritonUnavailableError, run_triton
from ..schemas.bundle import BundleConfig, ModuleLayout
from ..schemas.verification import BackendNotRun, BackendRun
from .arithmetic import MemberFactors, expected_output, random_tokens
from .tensors import ModuleTensors

_BACKEND = "triton"


def smallest_module(bundle: Bundle) -> str:
    """The module whose factors have the fewest numbers; of equals the first."""
    layouts, shapes = bundle.config.layouts, bundle.shapes
    return min(bundle.config.target_modules, key=lambda path: layouts[path].rows * sum(shapes[path]))


def check_with_triton(
    config: BundleConfig,
    layout: ModuleLayout,
    tensors: ModuleTensors,
    factors: Sequence[MemberFactors | None],
) -> BackendRun | BackendNotRun:
    """Run every member alone on one token, and each beside its neighbour, in float32.

    Returns the run with its error, or why there was none.
    """
    A, Bt = tensors.A.float(), tensors.Bt.float()
    members = len(config.members)
    # A single member has no neighbour, and no token may take one member twice.
    top_k = min(2, members)
    selection = (torch.arange(members)[:, None] + torch.arange(top_k)) % members
    weights = torch.tensor([0.75, 0.25])[:top_k].repeat(members, 1)
    x = random_tokens(layout.path, members, A.shape[1])
    try:
        run = run_triton(x, A, Bt, layout.offsets, layout.scalings, selection, weights)
    except (TritonUnavailableError, TritonRunError) as error:
        return BackendNotRun(backend=_BACKEND, reason=str(error))
    expected = expected_output(factors, x, selection, weights)
    found = relative_error(run.output, expected)
    return BackendRun(
        backend=_BACKEND,
        device=run.device,
        compute_dtype="float32",
        modules=1,
        max_error=found if math.isfinite(found) else None,
        tolerance=TOLERANCES[torch.float32],
    )
