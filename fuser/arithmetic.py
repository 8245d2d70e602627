"""One module's arithmetic: the dispatcher that inference uses, against float64.

Compared are the output routed by the bundle's gate for random tokens, and each member alone. The reference is
computed apart from any kernel, ``sum over slots j of w_j s_i (x A_i^T) B_i^T`` with ``i = selection_j``, from
the members' own factors or, without those files, from the rows that the bundle holds of each. A wrong
scaling, a swapped member, a shifted row or a broken kernel shows in one of the two errors.

Each member's factors are widened to float64 once, whatever the number of backends, and a member is
multiplied only with the tokens that take it, so the cost of a module is linear in the number of members.

``check_with_triton`` does the same for the Triton kernels. On a GPU they are what inference runs; elsewhere
Triton's interpreter computes the same kernels on the CPU, slowly and in a process of its own, so one module
has to do. The record states which it was.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from ..bundle import Bundle
from ..kernels.bound import BoundAdapters
from ..kernels.reference import TOLERANCES, reference_gate_logits, relative_error
from ..kernels.routed_lora import routed_lora
from ..kernels.routing import FixedRouting, Routing, gate_logits, select_top_k
from ..kernels.triton_check import TritonRunError, TritonUnavailableError, run_triton
from ..schemas.bundle import BundleConfig, ModuleLayout
from ..schemas.verification import BackendNotRun, BackendRun
from .bundle_reader import ModuleTensors

ROUTED_TOKENS = 16
FORCED_TOKENS = 4
# A token whose choice hangs on the last bits proves nothing about the gate: its logits may differ by
# this much of the largest one.
_LOGIT_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class MemberFactors:
    """One member's factors in one module: A ``[r, in]``, B ``[out, r]``, and its scaling."""

    A: Tensor
    B: Tensor
    scaling: float

    def widened(self) -> MemberFactors:
        """Return the same factors in float64, which holds every value of the narrower types exactly."""
        return MemberFactors(self.A.to(torch.float64), self.B.to(torch.float64), self.scaling)

    def delta(self, x: Tensor) -> Tensor:
        """Return what the member adds for float64 tokens ``x`` ``[T, in]``: float64 ``[T, out]``."""
        return self.scaling * (x @ self.A.T @ self.B.T)


@dataclass(frozen=True, slots=True)
class Backend:
    """A device and element type that the dispatcher runs on."""

    name: str
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class ModuleErrors:
    """The errors of one module on one backend: routed, and the worst of all members forced alone."""

    routed: float
    forced: float
    worst_member: str
    wrong_choices: int


def stored_factors(layout: ModuleLayout, tensors: ModuleTensors) -> list[MemberFactors | None]:
    """Return each member's factors as the bundle's own rows hold them, None where it has rank 0."""
    found: list[MemberFactors | None] = []
    for index, rank in enumerate(layout.ranks):
        rows = layout.rows_of(index)
        factors = MemberFactors(tensors.A[rows], tensors.Bt[rows].T, layout.scalings[index])
        found.append(factors if rank else None)
    return found


def compare_module(
    config: BundleConfig,
    layout: ModuleLayout,
    tensors: ModuleTensors,
    backends: Sequence[Backend],
    members: Sequence[MemberFactors | None],
) -> list[ModuleErrors]:
    """Run one module on every backend and return, in their order, how far each is from float64.

    Args:
        config: the bundle's config: gate, top_k, temperature.
        layout: the module's layout.
        tensors: the module's tensors, as the bundle stores them.
        backends: devices and element types to run.
        members: the factors that the reference multiplies, in the members' order, None where one is absent.
    """
    tokens = _Tokens.draw(config, layout.path, tensors, backends)
    logits = reference_gate_logits(
        tokens.seen, tensors.gate, tensors.bias, kind=config.gate.kind, eps=config.gate.eps
    )
    runs = [_Run.start(config, layout, tensors, backend, tokens, logits) for backend in backends]
    for index, member in enumerate(members):
        exact = None if member is None else member.widened()
        x = tokens.forced(index)
        alone = torch.zeros(len(x), tensors.Bt.shape[1], dtype=torch.float64)
        if exact is not None:
            alone = exact.delta(x.to(torch.float64))
        for run in runs:
            run.force(index, x, alone)
            if exact is not None:
                run.expect(index, exact)
    return [run.errors(config) for run in runs]


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The tokens of one module, rounded so that every backend reads the very same ones.

    Attributes:
        routed: float32 ``[T, in]``, what the module's adapters read.
        seen: float32 ``[T, in of the gate]``, what the gate reads: the tokens of another module where this
            one takes its routing.
    """

    path: str
    dtype: torch.dtype
    routed: Tensor
    seen: Tensor

    @classmethod
    def draw(
        cls, config: BundleConfig, path: str, tensors: ModuleTensors, backends: Sequence[Backend]
    ) -> Self:
        coarsest = max((backend.dtype for backend in backends), key=lambda dtype: torch.finfo(dtype).eps)
        source = config.gate.sources.get(path, path)
        return cls(
            path=path,
            dtype=coarsest,
            routed=_rounded(random_tokens(path, ROUTED_TOKENS, tensors.A.shape[1]), coarsest),
            seen=_rounded(random_tokens(source, ROUTED_TOKENS, tensors.gate.shape[1]), coarsest),
        )

    def forced(self, index: int) -> Tensor:
        """Return the tokens on which one member runs alone, float32 ``[T, in]``."""
        features = self.routed.shape[1]
        return _rounded(random_tokens(f"{self.path}:{index}", FORCED_TOKENS, features), self.dtype)


@dataclass(slots=True)
class _Run:
    """One backend's run of a module: its routed output, and the errors found so far."""

    layout: ModuleLayout
    backend: Backend
    A: Tensor
    Bt: Tensor
    bound: BoundAdapters
    x: Tensor
    selection: Tensor
    weights: Tensor
    found: Tensor
    expected: Tensor
    wrong_choices: int
    forced: list[float] = field(default_factory=list)

    @classmethod
    def start(
        cls,
        config: BundleConfig,
        layout: ModuleLayout,
        tensors: ModuleTensors,
        backend: Backend,
        tokens: _Tokens,
        logits: Tensor,
    ) -> Self:
        """Route the tokens by the bundle's gate and run the dispatcher on them."""
        A, Bt = (tensor.to(backend.device, backend.dtype) for tensor in (tensors.A, tensors.Bt))
        x, seen = (part.to(backend.device, backend.dtype) for part in (tokens.routed, tokens.seen))
        routing = _route(config, tensors, seen)
        found = routed_lora(x, A, Bt, layout.offsets, layout.scalings, routing.selection, routing.weights)
        # The choice is the gate's (judged apart), but the weights are computed again: otherwise a wrong
        # softmax or temperature would be on both sides.
        selection = routing.selection.cpu()
        return cls(
            layout=layout,
            backend=backend,
            A=A,
            Bt=Bt,
            bound=BoundAdapters(A, Bt, layout.offsets, layout.scalings),
            x=tokens.routed.to(torch.float64),
            selection=selection,
            weights=torch.softmax(logits.gather(1, selection) / config.temperature, dim=1),
            found=found.cpu(),
            expected=torch.zeros(len(x), Bt.shape[1], dtype=torch.float64),
            wrong_choices=_wrong_choices(logits, selection),
        )

    def force(self, index: int, x: Tensor, expected: Tensor) -> None:
        """Compare one member alone on tokens ``x`` with the output expected of it."""
        selection = torch.full((len(x), 1), index, device=self.A.device)
        weights = torch.ones(len(x), 1, device=self.A.device)
        x = x.to(self.A.device, self.A.dtype)
        found = routed_lora(x, self.A, self.Bt, self.layout.offsets, self.layout.scalings, selection, weights)
        bound = torch.zeros_like(found)
        # A forced member is served in this way while nothing is trained.
        self.bound.add_fixed_(bound, x, FixedRouting.to(index))
        self.forced.append(max(relative_error(each.cpu(), expected) for each in (found, bound)))

    def expect(self, index: int, member: MemberFactors) -> None:
        """Add a member's part to the output expected of the routed tokens."""
        add_member(self.expected, self.x, self.selection, self.weights, index, member)

    def errors(self, config: BundleConfig) -> ModuleErrors:
        """Return the errors of the finished run."""
        worst = max(range(len(self.forced)), key=self.forced.__getitem__)
        return ModuleErrors(
            routed=relative_error(self.found, self.expected),
            forced=self.forced[worst],
            worst_member=config.names[worst],
            wrong_choices=self.wrong_choices,
        )


def expected_output(
    members: Sequence[MemberFactors | None], x: Tensor, selection: Tensor, weights: Tensor
) -> Tensor:
    """Return the right output for these choices and weights, float64 ``[T, out]``.

    Args:
        members: every member's factors, None where it is absent; at least one is present.
        x: ``[T, in]``.
        selection: the members of each token, int64 ``[T, k]``.
        weights: of those choices, ``[T, k]``.
    """
    out_features = next(member for member in members if member is not None).B.shape[0]
    expected = torch.zeros(x.shape[0], out_features, dtype=torch.float64)
    for index, member in enumerate(members):
        if member is not None:
            add_member(expected, x.to(torch.float64), selection, weights, index, member.widened())
    return expected


def add_member(
    expected: Tensor, x: Tensor, selection: Tensor, weights: Tensor, index: int, member: MemberFactors
) -> None:
    """Add to ``expected`` ``[T, out]`` what one member gives the tokens that take it; all are float64."""
    tokens = (selection == index).any(dim=1).nonzero().squeeze(1)
    if len(tokens):
        shares = (weights.to(torch.float64) * (selection == index)).sum(dim=1, keepdim=True)
        expected[tokens] += shares[tokens] * member.delta(x[tokens])


def random_tokens(path: str, tokens: int, features: int) -> Tensor:
    """Return standard normal tokens, float32 ``[tokens, features]``, always the same for one module."""
    # Seeded by the module's name, so that a verification repeated is the same verification.
    seed = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "little", signed=True)
    return torch.randn(tokens, features, generator=torch.Generator().manual_seed(seed))


def _rounded(tokens: Tensor, dtype: torch.dtype) -> Tensor:
    return tokens.to(dtype).to(torch.float32)


def _route(config: BundleConfig, tensors: ModuleTensors, x: Tensor) -> Routing:
    gate = tensors.gate.to(x.device)
    bias = None if tensors.bias is None else tensors.bias.to(x.device)
    logits = gate_logits(x, gate, bias, kind=config.gate.kind, eps=config.gate.eps)
    return select_top_k(logits, config.top_k, temperature=config.temperature)


def _wrong_choices(logits: Tensor, selection: Tensor) -> int:
    """Count the tokens whose selection is not a top-k choice of the float64 logits, rounding allowed for."""
    chosen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, selection, value=True)
    if chosen.all():
        return 0
    lowest_chosen = logits.masked_fill(~chosen, float("inf")).amin(dim=1)
    highest_left = logits.masked_fill(chosen, float("-inf")).amax(dim=1)
    slack = _LOGIT_TOLERANCE * logits.abs().amax()
    return int((highest_left > lowest_chosen + slack).sum().item())


_BACKEND = "triton"


def smallest_module(bundle: Bundle) -> str:
    """Return the module whose factors have the fewest numbers; of equals the first."""
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
