"""One linear module with its routed adapters: y = base(x) + sum of w_i s_i B_i A_i x over the gate's choice.

The base layer is a black box that is called and added to: ``nn.Linear``, transformers' ``Conv1D`` and any
quantised linear look the same from here, and the adapters' A and B are never transposed with the base's
weight. Tensors are kept per bundle under PEFT's adapter name; what must not be cast is kept beside them:
ranks and scalings in a plan, top_k and temperature in the router's rule. No cast of the model changes
the dtypes of the tensors; A and B in half precision compute in float32, as PEFT's LoRA does, unless declined.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..kernels.bound import BoundAdapters
from ..kernels.cpu_cost import is_a_handful
from ..kernels.routed_lora import gated_lora_, routed_lora, routed_lora_
from ..kernels.routing import FixedRouting, Gate
from ..schemas.bundle import (
    FACTORS,
    GATE_TENSORS,
    REQUEST_TENSORS,
    TENSOR_A,
    TENSOR_B,
    TENSOR_GATE,
    TENSOR_GATE_BIAS,
    BundleConfig,
    ModuleLayout,
    tensor_shapes,
)
from ..schemas.errors import BundleRefused, UsageError
from .current_pass import BundlePass, pass_of
from .router import BundleRouter
from .scopes.passes import Choice, as_routing
from .scopes.request_gate import Gram, RequestGate
from .scopes.routing_rule import RoutingRule
from .training_checks import note_training

_HALF = (torch.float16, torch.bfloat16)
# Their output may be added to in place: a black box may return a view of its input.
_RETURN_THEIR_OWN = (nn.Linear, Conv1D)


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One module's part of a bundle's config."""

    layout: ModuleLayout
    gate_kind: str
    gate_eps: float
    gate_bias: bool
    has_gate: bool
    request_classes: int

    @classmethod
    def of(cls, bundle: BundleConfig, path: str) -> Self:
        """Return the plan of the module at ``path``."""
        return cls(
            layout=bundle.layout_of(path),
            gate_kind=bundle.gate.kind,
            gate_eps=bundle.gate.eps,
            gate_bias=bundle.gate.bias,
            has_gate=bundle.has_gate(path),
            request_classes=bundle.request_classes(path),
        )

    @property
    def has_factors(self) -> bool:
        """Whether any member has factors here; if not, a request gate alone reads the module's input."""
        return self.layout.rows > 0

    @property
    def factors(self) -> tuple[str, ...]:
        """The names of the module's factors."""
        return FACTORS if self.has_factors else ()

    def shapes(self, in_features: int, out_features: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each of the module's tensors, by tensor name."""
        return tensor_shapes(
            self.layout.rows,
            len(self.layout.ranks),
            in_features,
            out_features,
            has_gate=self.has_gate,
            has_bias=self.gate_bias,
            request_classes=self.request_classes,
        )


class BundleParameters(nn.ParameterDict):
    """One tensor of the layer for every bundle: moved with the model, never cast with it.

    ``model.to(torch.bfloat16)`` would round the gate and change what a save writes.
    """

    def forward(self, adapter_name: str) -> nn.Parameter:
        """Return a bundle's tensor, which accelerate brings back for this call if it was offloaded."""
        parameter: nn.Parameter = self[adapter_name]
        return parameter

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        applied: Self = super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]  # torch's
        return applied


class MeteoraLayer(nn.Module, BaseTunerLayer):
    """A base layer and the bundles that route to adapters around it."""

    adapter_layer_names = (*FACTORS, *GATE_TENSORS)
    other_param_names = (
        "meteora_plans",
        "meteora_routers",
        "meteora_stored_dtypes",
        "meteora_widens",
        "meteora_offloaded",
        "meteora_bindings",
        "meteora_bound_gates",
        "meteora_grams",
    )

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = features_of(base_layer)
        for tensor in self.adapter_layer_names:
            setattr(self, tensor, BundleParameters())
        self.meteora_plans: dict[str, LayerPlan] = {}
        self.meteora_routers: dict[str, BundleRouter] = {}
        # Of the bundles whose factors compute in another dtype than the bundle's.
        self.meteora_stored_dtypes: dict[str, torch.dtype] = {}
        # Whether factors in half precision compute in float32, by bundle.
        self.meteora_widens: dict[str, bool] = {}
        # Loaded values that no hook of accelerate has asked for yet, by bundle and tensor.
        self.meteora_offloaded: dict[str, dict[str, Tensor]] = {}
        # The adapters and the gate of each bundle, bound to its tensors at their first use, and its request
        # gate's Gram matrix, inverted then.
        self.meteora_bindings: dict[str, BoundAdapters] = {}
        self.meteora_bound_gates: dict[str, Gate] = {}
        self.meteora_grams: dict[str, Gram] = {}
        self.register_state_dict_post_hook(note_training)  # type: ignore[no-untyped-call]  # torch
        self.register_state_dict_post_hook(_with_stored_dtypes)  # type: ignore[no-untyped-call]  # torch
        self.frozen_peft_weight_names: dict[str, tuple[str, ...]] = {}
        self.train(base_layer.training)

    def add_bundle(self, plan: LayerPlan, router: BundleRouter) -> None:
        """Add a bundle: its tensors are on the meta device until their dtypes are known."""
        adapter_name = router.adapter_name
        self.meteora_plans[adapter_name] = plan
        self.meteora_routers[adapter_name] = router
        router.layers[plan.layout.path] = self
        # No gradient reaches what decides before the routed pass.
        self.frozen_peft_weight_names[adapter_name] = (*FACTORS, *REQUEST_TENSORS)
        shapes = plan.shapes(self.in_features or 0, self.out_features or 0)
        self.allocate(
            adapter_name, {tensor: torch.empty(shape, device="meta") for tensor, shape in shapes.items()}
        )

    def allocate(
        self, adapter_name: str, like: dict[str, Tensor], *, device: torch.device | None = None
    ) -> None:
        """Replace a bundle's tensors by uninitialised ones of these shapes and dtypes.

        ``device`` is that of ``like`` unless stated.
        """
        self.meteora_stored_dtypes.pop(adapter_name, None)
        for tensor, pattern in like.items():
            parameters = getattr(self, tensor)
            trained = adapter_name in parameters and parameters[adapter_name].requires_grad
            parameters[adapter_name] = nn.Parameter(
                torch.empty(pattern.shape, dtype=pattern.dtype, device=device or pattern.device),
                requires_grad=trained,
            )
        self.widen(adapter_name)

    def tensor_of(self, tensor: str, adapter_name: str) -> nn.Parameter:
        """Return one of a bundle's tensors in this module, such as ``meteora_gate``."""
        # Module's own look-ups, by name and again in the dictionary, cost more than a decoded token's gate.
        parameters: Any = self._modules[tensor]
        parameter: nn.Parameter = parameters._parameters[adapter_name]
        return parameter

    def present(self, tensor: str, adapter_name: str) -> Tensor:
        """Return one of a bundle's tensors to compute with, wherever it is kept."""
        parameters: Any = self._modules[tensor]
        # accelerate replaces `forward` where it keeps tensors elsewhere; a dictionary cannot be called.
        is_elsewhere = "forward" in parameters.__dict__
        found: Tensor = (
            parameters.forward(adapter_name) if is_elsewhere else self.tensor_of(tensor, adapter_name)
        )
        return found

    def compute_in(self, adapter_name: str, dtype: torch.dtype) -> None:
        """Let A and B compute in ``dtype``, rounded where it is narrower than their own."""
        self.meteora_widens[adapter_name] = False
        for tensor in self.meteora_plans[adapter_name].factors:
            parameter = self.tensor_of(tensor, adapter_name)
            own = self.meteora_stored_dtypes.setdefault(adapter_name, parameter.dtype)
            parameter.data = parameter.data.to(own).to(dtype)

    def widen(self, adapter_name: str) -> None:
        """Let A and B in half precision compute in float32, where that is asked for.

        A state dict still has them in their own dtype.
        """
        if not self.meteora_widens.get(adapter_name):
            return
        for tensor in self.meteora_plans[adapter_name].factors:
            parameter = self.tensor_of(tensor, adapter_name)
            if parameter.dtype in _HALF:
                self.meteora_stored_dtypes[adapter_name] = parameter.dtype
                parameter.data = parameter.data.float()

    @property
    def base_device(self) -> torch.device:
        """The device of the base layer's weights; the CPU if it has none."""
        base = self.get_base_layer()
        first = next(itertools.chain(base.parameters(), base.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output with the active bundles' contributions added."""
        # By its name torch would look among the modules last: 1.0 us where this takes 0.1.
        base: Any = self._modules["base_layer"]
        out: Tensor = base(x, *args, **kwargs)
        for adapter_name, part in self._parts():
            out = self._add_contribution(out, x, adapter_name, part)
        return out

    def _parts(self) -> list[tuple[str, BundlePass]]:
        """Return each active bundle's part in the present pass, by adapter name."""
        routers = self.meteora_routers
        running = pass_of(routers.values())
        if running is not None:
            parts = running.parts
            return [(name, parts[router]) for name, router in routers.items() if router in parts]
        if self.disable_adapters:
            return []
        return [
            (name, routers[name].outside(self.meteora_plans[name].layout.path))
            for name in self.active_adapters
            if name in routers and self.meteora_plans[name].has_factors
        ]

    def gate_of(self, adapter_name: str, rule: RoutingRule) -> Gate | None:
        """Return a bundle's gate in this module, or None where it takes another module's routing."""
        plan = self.meteora_plans[adapter_name]
        if not plan.has_gate:
            return None
        weight = self.present(TENSOR_GATE, adapter_name)
        bias = self.present(TENSOR_GATE_BIAS, adapter_name) if plan.gate_bias else None
        kept = self.meteora_bound_gates.get(adapter_name)
        # Compared by what a gate takes of a rule: each block of `route_as` makes a rule of its own.
        if (
            kept is not None
            and kept.weight is weight
            and kept.bias is bias
            and kept.takes(rule.top_k, rule.temperature)
        ):
            return kept
        gate = Gate(
            weight=weight,
            bias=bias,
            kind=plan.gate_kind,
            top_k=rule.top_k,
            temperature=rule.temperature,
            eps=plan.gate_eps,
        )
        if weight is self.tensor_of(TENSOR_GATE, adapter_name):
            self.meteora_bound_gates[adapter_name] = gate
        return gate

    def request_gate_of(self, adapter_name: str) -> RequestGate:
        """Return a bundle's request gate in this module, which has one."""
        plan = self.meteora_plans[adapter_name]
        rows, bias, values = (self.present(tensor, adapter_name) for tensor in REQUEST_TENSORS)
        gram = self.meteora_grams.get(adapter_name)
        if gram is None or not gram.is_of(values):
            gram = self.meteora_grams[adapter_name] = Gram.of(values)
        return RequestGate(rows, bias, gram, kind=plan.gate_kind, eps=plan.gate_eps)

    def _add_contribution(self, out: Tensor, x: Tensor, adapter_name: str, part: BundlePass) -> Tensor:
        layout = self.meteora_plans[adapter_name].layout
        if not layout.rows:
            part.observe(layout.path, x)
            return out
        A, Bt = self.present(TENSOR_A, adapter_name), self.present(TENSOR_B, adapter_name)
        if A.is_meta:
            raise BundleRefused(
                f"the tensors of bundle `{adapter_name}` were never loaded: `{layout.path}` has none",
                hint="load the bundle's folder with `PeftModel.from_pretrained` or `model.load_adapter`",
            )
        choice = part.choose(layout.path, x, self.gate_of(adapter_name, part.rule))
        if choice is None:
            return out
        base: Any = self._modules["base_layer"]
        plain = type(base) in _RETURN_THEIR_OWN and not base._forward_hooks
        bound = self._bound(adapter_name, A, Bt, layout)
        if plain and bound is not None and _add_bound(bound, out, x, choice, part, layout.path):
            return out
        in_place = plain and not torch.is_grad_enabled() and out.dtype == A.dtype
        operands = (x.to(A.dtype), A, Bt, layout.offsets, layout.scalings)
        if isinstance(choice, Gate):
            if in_place and x.dtype == A.dtype:
                part.report(layout.path, gated_lora_(out, *operands, choice), x)
                return out
            choice = choice.route(x)
            part.report(layout.path, choice, x)
        choice = as_routing(choice, x)
        if in_place:
            return routed_lora_(out, *operands, choice.selection, choice.weights)
        # Promotion makes the sum at the wider dtype, so that it is rounded once.
        return (out + routed_lora(*operands, choice.selection, choice.weights)).to(out.dtype)

    def _bound(self, adapter_name: str, A: Tensor, Bt: Tensor, layout: ModuleLayout) -> BoundAdapters | None:
        """Return a bundle's adapters bound to its tensors, again if they are others by now.

        None for tensors that accelerate keeps elsewhere, since bound views would keep them in memory.
        """
        if A is not self.tensor_of(TENSOR_A, adapter_name):
            self.meteora_bindings.pop(adapter_name, None)
            self.meteora_bound_gates.pop(adapter_name, None)
            return None
        bound = self.meteora_bindings.get(adapter_name)
        if bound is None or not bound.holds(A, Bt):
            bound = BoundAdapters(A, Bt, layout.offsets, layout.scalings)
            self.meteora_bindings[adapter_name] = bound
        return bound

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # The bound views would keep the memory of tensors that are moved.
        self.meteora_bindings.clear()
        self.meteora_bound_gates.clear()
        self.meteora_grams.clear()
        applied: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        return applied

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:
        """Refuse: the weights that a token meets depend on the token."""
        refuse_merge()

    def unmerge(self) -> NoReturn:
        """Refuse: nothing was ever merged."""
        refuse_merge()

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # PEFT's own would cast to the base layer's dtype on the way.
        for tensor in self.adapter_layer_names:
            parameters = getattr(self, tensor)
            if adapter_name in parameters and not parameters[adapter_name].is_meta:
                parameters[adapter_name] = parameters[adapter_name].to(device or self.base_device)


def _add_bound(
    bound: BoundAdapters, out: Tensor, x: Tensor, choice: Choice, part: BundlePass, path: str
) -> bool:
    """Add a bundle's part to `out` in the short way, and return whether that way serves the call."""
    if isinstance(choice, FixedRouting) and bound.serves(out, x):
        bound.add_fixed_(out, x, choice)
        return True
    if isinstance(choice, Gate) and is_a_handful(x, choice.top_k) and bound.serves(out, x):
        part.report(path, bound.add_gated_(out, x, choice), x)
        return True
    return False


def _with_stored_dtypes(layer: MeteoraLayer, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Give factors that compute in another dtype their own back, so that a save writes the bundle's bytes."""
    for adapter_name, dtype in layer.meteora_stored_dtypes.items():
        for tensor in FACTORS:
            name = f"{prefix}{tensor}.{adapter_name}"
            # Factors that were trained have values that the bundle's dtype cannot hold.
            if name not in state or layer.tensor_of(tensor, adapter_name).requires_grad:
                continue
            if torch.promote_types(state[name].dtype, dtype) != state[name].dtype:
                raise UsageError(
                    f"the factors of bundle `{adapter_name}` were rounded from `{dtype}` to "
                    f"`{state[name].dtype}` and cannot be saved",
                    hint="load the bundle without `factor_dtype` to save it",
                )
            state[name] = state[name].to(dtype)


def features_of(layer: nn.Module) -> tuple[int | None, int | None]:
    """Return the input and output features that a layer states; None for a black box that states none.

    Decided by the layer's type: ``Conv1D`` keeps its weight transposed and has names of its own.
    """
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    found = (getattr(layer, "in_features", None), getattr(layer, "out_features", None))
    return found if all(isinstance(features, int) for features in found) else (None, None)


def refuse_merge() -> NoReturn:
    """Raise the error of every attempt to merge."""
    raise UsageError(
        "a routed model cannot be merged or unmerged: its weights differ from token to token",
        hint="to merge one member, load it alone from the bundle's `experts/NAME` or after `extract`",
    )
