"""One linear's adapters bound to their tensors: the short way of few tokens, and of a fixed routing.

`gated_lora_` and `routed_lora_` check their operands at every call, make tensors of a routing and read them
again. In a model's decoding that costs more than the products. Here the operands are checked once, when they
are bound; each adapter's factors are views made at that time; and a routing stays on the host. With a fixed
routing an adapter is a plain LoRA, so it serves any number of tokens by two products. Nothing is copied, so a
bundle of hundreds of members costs no more memory. Shapes are those of ``layout.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .layout import layout_of
from .operands import check_factors, check_gate_serves
from .operators import is_autocast
from .routed_lora import flat, rows_of
from .routing import FixedRouting, Gate, Routing, check_gate, check_top_k, joined_routings

# Factors in half precision are rounded between their products, where each formulation has its own places.
_BOUND = (torch.float32, torch.float64)


class BoundAdapters:
    """The adapters of one linear, checked and bound.

    Args:
        A: [N, h], as `routed_lora` takes it; those in half precision are served in the general way.
        Bt: [N, D], the dtype of `A`.
        offsets: L + 1 row offsets into A and Bt.
        scaling: L factors.

    Raises:
        ValueError: as `routed_lora` for operands that do not fit together.
    """

    __slots__ = ("_A", "_Bt", "_adapters", "_addresses", "_dtype", "_gate", "_is_cpu")

    def __init__(self, A: Tensor, Bt: Tensor, offsets: Sequence[int], scaling: Sequence[float]) -> None:
        layout = layout_of(offsets, scaling)
        # Outside inference mode, so that the views can serve any later call.
        with torch.inference_mode(mode=False), torch.no_grad():
            A, Bt = A.detach(), Bt.detach()
            check_factors(A, A, Bt, layout.offsets)
            ends = zip(layout.offsets[:-1], layout.offsets[1:], layout.scaling, strict=True)
            # None for an adapter that is absent here.
            self._adapters = [
                (A[start:end], Bt[start:end].T, factor) if end > start else None
                for start, end, factor in ends
            ]
        self._A, self._Bt, self._dtype, self._is_cpu = A, Bt, A.dtype, A.is_cpu
        self._addresses = (A.data_ptr(), Bt.data_ptr())
        self._gate: Gate | None = None

    def holds(self, A: Tensor, Bt: Tensor) -> bool:
        """Return whether these tensors still are the bound ones: neither moved nor cast nor replaced."""
        # The views keep the storage alive, so no other tensor can be at its address.
        return (A.data_ptr(), Bt.data_ptr()) == self._addresses and A.dtype == self._dtype

    def serves(self, out: Tensor, x: Tensor) -> bool:
        """Return whether `out` [..., D] and `x` [..., h] can take this way now: in place, by no compiler."""
        return (
            self._dtype in _BOUND
            and not torch.is_grad_enabled()
            and not is_dynamo_compiling()
            and type(x) is Tensor
            and type(out) is Tensor
            # Comparing devices takes longer than asking for the usual one.
            and (x.is_cpu and out.is_cpu if self._is_cpu else x.device == out.device == self._A.device)
            and out.is_contiguous()
            # The sum is made in the factors' dtype, so a wider output would be rounded.
            and (out.dtype == self._dtype or out.dtype.itemsize < self._dtype.itemsize)
            and not is_autocast(x)
        )

    def add_fixed_(self, out: Tensor, x: Tensor, routing: FixedRouting) -> None:
        """Add to `out` [..., D], in place, what a routing adds that is the same for every token of `x`."""
        if x.numel() == x.shape[-1]:
            self._add_(out.view(-1), self._wide(x.view(-1)), routing)
        else:
            self._add_(rows_of(out), self._wide(flat(x)), routing)

    def add_gated_(self, out: Tensor, x: Tensor, gate: Gate) -> Routing | FixedRouting:
        """Return the gate's routing [..., k] of `x`, after adding what it routes to `out` in place.

        For few tokens: they are served one after the other, and the routing of a single one is fixed.

        Raises:
            ValueError: the gate does not fit.
        """
        if gate is not self._gate:
            self._bind_gate(gate, x)
        if x.numel() == x.shape[-1]:
            return self._add_gated_to_one_(out.view(-1), x.view(-1), gate)
        pairs = zip(rows_of(out), flat(x), strict=True)
        return joined_routings([self._add_gated_to_one_(*pair, gate) for pair in pairs], x)

    def _add_gated_to_one_(self, out: Tensor, x: Tensor, gate: Gate) -> FixedRouting:
        x = self._wide(x)
        routing = gate.route_on_host(x)
        self._add_(out, x, routing)
        return routing

    def _bind_gate(self, gate: Gate, x: Tensor) -> None:
        check_gate(x, gate.weight, gate.bias, gate.kind)
        check_gate_serves(gate.weight, gate.bias, x, adapters=len(self._adapters))
        check_top_k(gate.weight.shape[:1], gate.top_k, gate.temperature)
        self._gate = gate

    def _wide(self, x: Tensor) -> Tensor:
        """Return `x` in the factors' dtype."""
        if x.dtype == self._dtype:
            return x
        # Half the time of `to`, which has to find out what its argument is.
        return x.float() if self._dtype == torch.float32 else x.double()

    def _add_(self, out: Tensor, x: Tensor, routing: FixedRouting) -> None:
        """Add to `out` [D] or [T, D] what a routing adds for one token x [h], or for every one of x [T, h].

        `x` has the factors' dtype.
        """
        total, is_one = self._wide(out), x.ndim == 1
        for adapter, weight in zip(routing.adapters, routing.weights, strict=True):
            bound = self._adapters[adapter]
            if bound is None or not weight:
                continue
            down, up, scaling = bound
            if is_one:
                total.addmv_(up, torch.mv(down, x), alpha=weight * scaling)
            else:
                total.addmm_(torch.mm(x, down.T), up.T, alpha=weight * scaling)
        if total is not out:
            out.copy_(total)
