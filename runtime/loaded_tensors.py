"""The tensors of a bundle as they are loaded: those that its config names, and no other, in their own dtypes.

PEFT and transformers only warn of a missing tensor and then compute with uninitialised memory, so what they
load is checked here first, whichever of them loads it. PEFT passes the tensors to the tuner. transformers'
``load_adapter`` injects the tuner and reads the weights file itself, so for one load the injected model gets
a ``_load_pretrained_model`` of its own that looks at the file first. If a future transformers drops that
method, the tensors that were never loaded still stop the first forward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..schemas.bundle import FACTORS, TENSOR_A, TENSOR_B, TENSOR_PREFIX, TENSOR_REQUEST_GATE
from ..schemas.errors import BundleRefused, SourceUnreadable, UsageError
from .layer import MeteoraLayer
from .offloading import execution_device, is_offloaded, keep_values, refuse_offloaded
from .requirements import check_folder, check_gates, is_gate, manifest_in, require_checked
from .router import BundleRouter

FACTOR_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_SHOWN_PROBLEMS = 5


def layers_with(model: nn.Module, adapter_name: str) -> dict[str, MeteoraLayer]:
    """Return the layers that a bundle was injected into, by module path."""
    return {
        name.removeprefix(TENSOR_PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, MeteoraLayer) and adapter_name in module.meteora_plans
    }


def router_of(model: nn.Module, adapter_name: str) -> BundleRouter:
    """Return the router of a bundle that was injected."""
    return next(iter(layers_with(model, adapter_name).values())).meteora_routers[adapter_name]


def allocate_for(model: nn.Module, adapter_name: str, found: Mapping[str, Tensor], *, on_base: bool) -> None:
    """Check the tensors that are about to be loaded, and allocate them in their own dtypes.

    Args:
        model: carries the bundle's layers.
        adapter_name: PEFT's name of the bundle.
        found: what the file or the state dict has, by its names.
        on_base: allocate where the base layers compute; otherwise on the meta device, and of ``found`` only
            shapes and dtypes are read.

    Raises:
        BundleRefused: a tensor is missing, unexpected or mis-shaped, or has a dtype that bundles do not have.
    """
    layers = layers_with(model, adapter_name)
    found = {name.removeprefix(TENSOR_PREFIX): tensor for name, tensor in found.items()}
    problems = [*_problems(layers, adapter_name, found)]
    if problems:
        raise _refusal(adapter_name, problems)
    for path, layer in layers.items():
        patterns = {
            tensor: found[f"{path}.{tensor}"].to("meta") for tensor in _tensor_names(layer, adapter_name)
        }
        layer.allocate(adapter_name, patterns, device=execution_device(layer) if on_base else None)
        if on_base and is_offloaded(layer):
            keep_values(layer, adapter_name, {tensor: found[f"{path}.{tensor}"] for tensor in patterns})


def restore_dtypes(model: nn.Module, adapter_name: str, found: Mapping[str, Tensor]) -> None:
    """Give loaded tensors their dtypes in ``found`` back, where a loader widened them."""
    found = {name.removeprefix(TENSOR_PREFIX): tensor for name, tensor in found.items()}
    for path, layer in layers_with(model, adapter_name).items():
        for tensor in _tensor_names(layer, adapter_name):
            parameter = layer.tensor_of(tensor, adapter_name)
            parameter.data = parameter.data.to(found[f"{path}.{tensor}"].dtype)


def set_widening(model: nn.Module, adapter_name: str, *, widens: bool) -> None:
    """Set whether factors in half precision compute in float32, loaded already or still to be loaded."""
    for layer in layers_with(model, adapter_name).values():
        layer.meteora_widens[adapter_name] = widens
        layer.widen(adapter_name)


def set_factor_dtype(model: nn.Module, adapter_name: str, dtype: torch.dtype) -> None:
    """Let a loaded bundle's A and B compute in a dtype, whatever their own is.

    Raises:
        UsageError: factors cannot have it.
    """
    if dtype not in FACTOR_DTYPES:
        allowed = ", ".join(f"`{each}`" for each in FACTOR_DTYPES)
        raise UsageError(f"`factor_dtype` is `{dtype}`, expected one of {allowed}")
    for layer in layers_with(model, adapter_name).values():
        layer.compute_in(adapter_name, dtype)


def _tensor_names(layer: MeteoraLayer, adapter_name: str) -> list[str]:
    return list(layer.meteora_plans[adapter_name].shapes(0, 0))


def _problems(
    layers: Mapping[str, MeteoraLayer], adapter_name: str, found: Mapping[str, Tensor]
) -> Iterator[str]:
    expected = {
        f"{path}.{tensor}" for path, layer in layers.items() for tensor in _tensor_names(layer, adapter_name)
    }
    for name in sorted(expected - found.keys()):
        yield f"`{name}` is missing"
    for name in sorted(found.keys() - expected):
        yield f"`{name}` is unexpected"
    for path, layer in layers.items():
        yield from _misfits(path, layer, adapter_name, found)
    factors = {tensor.dtype for name, tensor in found.items() if name in expected and _is_factor(name)}
    if len(factors) > 1 or not factors <= set(FACTOR_DTYPES):
        listed = ", ".join(sorted(f"`{dtype}`" for dtype in factors))
        allowed = ", ".join(f"`{dtype}`" for dtype in FACTOR_DTYPES)
        yield f"`{TENSOR_A}` and `{TENSOR_B}` are {listed}, expected one of {allowed} throughout"


def _is_factor(name: str) -> bool:
    return name.rpartition(".")[2] in FACTORS


def _misfits(path: str, layer: MeteoraLayer, adapter_name: str, found: Mapping[str, Tensor]) -> Iterator[str]:
    # A black box that states no features takes those of the bundle, which must then agree in themselves.
    first = TENSOR_A if layer.meteora_plans[adapter_name].has_factors else TENSOR_REQUEST_GATE
    in_features = layer.in_features or _columns(found.get(f"{path}.{first}"))
    out_features = layer.out_features or _columns(found.get(f"{path}.{TENSOR_B}"))
    shapes = layer.meteora_plans[adapter_name].shapes(in_features, out_features)
    for tensor, shape in shapes.items():
        actual = found.get(f"{path}.{tensor}")
        if actual is None:
            continue
        if actual.shape != shape:
            yield f"`{path}.{tensor}` is {list(actual.shape)}, expected {list(shape)}"
        if tensor not in FACTORS and actual.dtype != torch.float32:
            yield f"`{path}.{tensor}` is `{actual.dtype}`, expected `{torch.float32}`"


def _columns(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.ndim != 2 else tensor.shape[1]


def _refusal(adapter_name: str, problems: list[str]) -> BundleRefused:
    shown = "; ".join(problems[:_SHOWN_PROBLEMS])
    more = f"; and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
    return BundleRefused(
        f"the tensors of bundle `{adapter_name}` are not those of its config and base: {shown}{more}",
        hint="check that the base is the right one, and with `meteora-registry verify` that the files are",
    )


_HOOKED = "_load_pretrained_model"
# Every element type of safetensors that may meet a refusal which names it.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class CheckedLoad:
    """A replacement of one model's ``_load_pretrained_model`` during one load."""

    def __init__(self, model: nn.Module, adapter_name: str) -> None:
        self.model = model
        self.adapter_name = adapter_name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Check what is to be loaded, let transformers load it, and freeze what is not trained."""
        release(self.model)
        state_dict, files = kwargs.get("state_dict"), [*map(Path, kwargs.get("checkpoint_files") or ())]
        refuse_offloaded(layers_with(self.model, self.adapter_name), self.adapter_name)
        if state_dict:
            require_checked(is_checked=False)
            found, gates = state_dict, [*state_dict.items()]
        else:
            found = _headers_of(files)
            for file in files:
                check_folder(file.parent)
            gates = [gate for file in files for gate in _gates_in(file)]
        check_gates(gates)
        set_widening(self.model, self.adapter_name, widens=False)
        allocate_for(self.model, self.adapter_name, found, on_base=False)
        loaded_gates = router_of(self.model, self.adapter_name).loaded_gates
        loaded_gates.remember(gates)
        loaded_gates.manifest_sha256 = next((manifest_in(file.parent) for file in files), None)
        result = getattr(self.model, _HOOKED)(*args, **kwargs)
        # Some architectures keep named modules in float32 whatever the rest is, and the bundle's tensors in
        # them too.
        restore_dtypes(self.model, self.adapter_name, found)
        # transformers computes adapters in the base's dtype; the bundle's own is kept where that is wider.
        is_wide = getattr(self.model, "dtype", None) == torch.float32
        set_widening(self.model, self.adapter_name, widens=is_wide)
        for layer in layers_with(self.model, self.adapter_name).values():
            layer._freeze_non_trainable_peft_weights(self.adapter_name)
        return result


def check_next_load(model: nn.Module, adapter_name: str) -> None:
    """Check the next load into ``model``, if transformers is what loads."""
    if hasattr(model, _HOOKED):
        model.__dict__[_HOOKED] = CheckedLoad(model, adapter_name)


def release(model: nn.Module) -> None:
    """Restore transformers' own loading of ``model``."""
    model.__dict__.pop(_HOOKED, None)


def _gates_in(path: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in filter(is_gate, file.keys()):
            yield name, file.get_tensor(name)


def _headers_of(files: Iterable[Path]) -> Mapping[str, Tensor]:
    return {name: tensor for file in files for name, tensor in _header_of(file).items()}


def _header_of(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        raise BundleRefused(
            f"the weights of a bundle are `{path.name}`, expected `adapter_model.safetensors`",
            hint="a pickle is never loaded; get the bundle again",
        )
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return {name: _like(piece.get_shape(), piece.get_dtype()) for name, piece in slices.items()}
    except OSError as error:
        raise SourceUnreadable(f"`{path}` cannot be read: {error.strerror or 'no such file'}") from error
    except SafetensorError as error:
        raise BundleRefused(f"`{path.name}` is not a safetensors file: {error}") from error


def _like(shape: list[int], dtype: str) -> Tensor:
    return torch.empty(shape, dtype=_DTYPES.get(dtype, torch.uint8), device="meta")
