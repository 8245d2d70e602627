"""One module's arithmetic: the dispatcher that inference uses, against float64.

What is compared: the output routed by the bundle's gate for random tokens, and each member alone.
The reference reads either the bundle's own tensors, or, worked out apart, the members' own factors:
``sum over slots j of w_j s_i (x A_i^T) B_i^T`` with ``i = selection_j``. A wrong scaling, a swapped
member, a shifted row or a broken kernel shows in one of the two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.reference import reference_routed_lora
from ..kernels.routed_lora import routed_lora
from ..kernels.routing import Routing, gate_logits, select_top_k
from ..kernels.tolerance import relative_error
from ..schemas.bundle import BundleConfig, ModuleLayout
from .bundle import ModuleTensors

ROUTED_TOKENS = 16
FORCED_TOKENS = 4
# A token whose choice hangs on the last bits proves nothing about the gate: its logits may differ by
# this much of the largest one.
_LOGIT_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class MemberFactors:
    """One member's own factors in one module: A ``[r, in]``, B ``[out, r]``, and its scaling."""

    A: Tensor
    B: Tensor
    scaling: float


@dataclass(frozen=True, slots=True)
class Backend:
    """Where and in which element type the dispatcher runs."""

    name: str
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class ModuleErrors:
    """The errors of one module: routed, and the worst of all members forced alone."""

    routed: float
    forced: float
    worst_member: str
    wrong_choices: int


def compare_module(
    config: BundleConfig,
    layout: ModuleLayout,
    tensors: ModuleTensors,
    backend: Backend,
    *,
    sources: Sequence[MemberFactors | None] | None,
) -> ModuleErrors:
    """Run one module on one backend and return how far it is from float64.

    Args:
        config: the bundle's config: gate, top_k, temperature.
        layout: the module's layout.
        tensors: the module's tensors, as the bundle stores them.
        backend: device and element type of the run.
        sources: the members' own factors in order, None where a member is absent; without them the
            reference reads the bundle's tensors.
    """
    ours = tensors.A.to(backend.device, backend.dtype), tensors.Bt.to(backend.device, backend.dtype)
    x = random_tokens(layout.path, ROUTED_TOKENS, tensors.A.shape[1]).to(backend.device, backend.dtype)
    # The tokens that the gate sees: those of another module where this one takes its routing.
    seen = random_tokens(
        config.gate.sources.get(layout.path, layout.path), ROUTED_TOKENS, tensors.gate.shape[1]
    )
    seen = seen.to(backend.device, backend.dtype)
    routing = _route(config, tensors, seen)
    routed = _routed_error(config, layout, tensors, ours, (x, seen), routing, sources)
    forced = [_forced_error(layout, tensors, ours, member, sources) for member in range(len(config.members))]
    worst = max(range(len(forced)), key=forced.__getitem__)
    return ModuleErrors(
        routed=routed,
        forced=forced[worst],
        worst_member=config.names[worst],
        wrong_choices=_wrong_choices(config, tensors, seen, routing),
    )


def random_tokens(path: str, tokens: int, features: int) -> Tensor:
    """Standard normal tokens, float32 ``[tokens, features]``, the same at every call for one module."""
    # Seeded by the module's name, so that a verification repeated is the same verification.
    seed = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "little", signed=True)
    return torch.randn(tokens, features, generator=torch.Generator().manual_seed(seed))


def _route(config: BundleConfig, tensors: ModuleTensors, x: Tensor) -> Routing:
    gate = tensors.gate.to(x.device)
    bias = None if tensors.bias is None else tensors.bias.to(x.device)
    logits = gate_logits(x, gate, bias, kind=config.gate.kind, eps=config.gate.eps)
    return select_top_k(logits, config.top_k, temperature=config.temperature)


def _routed_error(
    config: BundleConfig,
    layout: ModuleLayout,
    tensors: ModuleTensors,
    ours: tuple[Tensor, Tensor],
    tokens: tuple[Tensor, Tensor],
    routing: Routing,
    sources: Sequence[MemberFactors | None] | None,
) -> float:
    x, seen = tokens
    found = routed_lora(x, *ours, layout.offsets, layout.scalings, routing.selection, routing.weights)
    # The choice is the gate's (judged apart), but the weights are worked out again: else a wrong
    # softmax or temperature would stand on both sides.
    selection = routing.selection.cpu()
    logits = _exact_logits(config, tensors, seen.cpu().to(torch.float64))
    weights = torch.softmax(logits.gather(1, selection) / config.temperature, dim=1)
    expected = expected_output(layout, tensors, x.cpu(), selection, weights, sources)
    return relative_error(found.cpu(), expected)


def _forced_error(
    layout: ModuleLayout,
    tensors: ModuleTensors,
    ours: tuple[Tensor, Tensor],
    member: int,
    sources: Sequence[MemberFactors | None] | None,
) -> float:
    A, Bt = ours
    x = random_tokens(f"{layout.path}:{member}", FORCED_TOKENS, A.shape[1]).to(A.device, A.dtype)
    selection = torch.full((FORCED_TOKENS, 1), member, device=A.device)
    weights = torch.ones(FORCED_TOKENS, 1, device=A.device)
    found = routed_lora(x, A, Bt, layout.offsets, layout.scalings, selection, weights)
    expected = expected_output(layout, tensors, x.cpu(), selection.cpu(), weights.cpu(), sources)
    return relative_error(found.cpu(), expected)


def expected_output(
    layout: ModuleLayout,
    tensors: ModuleTensors,
    x: Tensor,
    selection: Tensor,
    weights: Tensor,
    sources: Sequence[MemberFactors | None] | None,
) -> Tensor:
    """The right output for these choices and weights, float64 ``[T, out]``: of the sources where given."""
    if sources is None:
        return reference_routed_lora(
            x, tensors.A, tensors.Bt, layout.offsets, layout.scalings, selection, weights
        )
    x64, w64 = x.to(torch.float64), weights.to(torch.float64)
    expected = torch.zeros(x.shape[0], tensors.Bt.shape[1], dtype=torch.float64)
    for index, source in enumerate(sources):
        if source is not None:
            weight = (w64 * (selection == index)).sum(dim=1, keepdim=True)
            delta = x64 @ source.A.to(torch.float64).T @ source.B.to(torch.float64).T
            expected += weight * source.scaling * delta
    return expected


def _wrong_choices(config: BundleConfig, tensors: ModuleTensors, x: Tensor, routing: Routing) -> int:
    """Tokens whose selection is no top k of the float64 logits, beyond what rounding explains."""
    logits = _exact_logits(config, tensors, x.cpu().to(torch.float64))
    chosen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, routing.selection.cpu(), value=True)
    if chosen.all():
        return 0
    lowest_chosen = logits.masked_fill(~chosen, float("inf")).amin(dim=1)
    highest_left = logits.masked_fill(chosen, float("-inf")).amax(dim=1)
    slack = _LOGIT_TOLERANCE * logits.abs().amax()
    return int((highest_left > lowest_chosen + slack).sum().item())


def _exact_logits(config: BundleConfig, tensors: ModuleTensors, x: Tensor) -> Tensor:
    z = x @ tensors.gate.to(torch.float64).T
    if config.gate.kind == "absolute":
        z = z.abs()
    elif config.gate.kind == "normalised":
        z = z / (x.norm(dim=1, keepdim=True) + config.gate.eps)
    return z if tensors.bias is None else z + tensors.bias.to(torch.float64)
