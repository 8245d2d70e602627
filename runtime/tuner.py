"""The PEFT tuner: puts a bundle's layers into a base model at exactly the paths that the bundle names.

``register`` makes PEFT know the type ``METEORA``. ``peft.utils.register_peft_method`` takes only members of
PEFT's closed enum, so the dictionaries that it fills are filled here. They are not documented as public; the
tests of this folder go through all of PEFT's and transformers' entry points to notice a change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import peft
from peft import PeftConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..schemas.bundle import BundleConfig
from ..schemas.errors import BundleRefused, MissingDependency, UsageError
from .generate_calls import stop_watching, watch_generate
from .hooks import ModelHooks
from .layer import LayerPlan, MeteoraLayer, refuse_merge
from .loaded_tensors import (
    allocate_for,
    check_next_load,
    layers_with,
    release,
    router_of,
    set_widening,
)
from .offloading import supply_hooks
from .peft_config import MeteoraConfig, MeteoraPeftType, warn_of_other_base, warn_unless_fitted
from .requirements import check_gates, require_checked
from .router import BundleRouter

# Not linear layers, and the projection that torch's attention uses without ever calling it.
_NOT_CALLED_AS_LINEAR = (nn.Embedding, nn.MultiheadAttention, _ConvNd, NonDynamicallyQuantizableLinear)


class MeteoraModel(BaseTuner):
    """A base model with one or more bundles."""

    prefix = "meteora_"
    tuner_layer_cls = MeteoraLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (PEFT declares it so)

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig | dict[str, PeftConfig],
        adapter_name: str,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__(model, peft_config, adapter_name, low_cpu_mem_usage, state_dict)
        # PeftModel passes a dictionary and then loads through `_remap_adapter_state_dict_for_load`.
        if isinstance(peft_config, MeteoraConfig):
            check_next_load(model, adapter_name)

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Put a bundle's layers into ``model``, or change nothing.

        Raises:
            BundleRefused: the base lacks a module, or has something else than a linear layer there.
        """
        config: Any = self.peft_config[adapter_name]
        bundle: BundleConfig = config.bundle
        _check_targets(model, bundle)
        warn_of_other_base(model, bundle)
        self._router = BundleRouter(adapter_name, config)
        super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)
        self._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        ModelHooks.of(model).routers[adapter_name] = self._router
        watch_generate(model)
        warn_unless_fitted(bundle, adapter_name)

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> bool:
        # Exact: PEFT's own matches suffixes, and would put layers where the bundle has no tensors.
        bundle: BundleConfig = peft_config.bundle
        return key in bundle.layouts or key in bundle.observed

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target if isinstance(target, MeteoraLayer) else MeteoraLayer(target)
        layer.add_bundle(LayerPlan.of(peft_config.bundle, current_key), self._router)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # PEFT's own copies `weight` and `bias`, which a black box need not have.
        setattr(parent, child_name, new_module)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        # As PEFT computes each adapter: half-precision factors in float32, unless that is declined.
        set_widening(self.model, adapter_name, widens=autocast_adapter_dtype)
        # PEFT calls this last, after accelerate has put its hooks on an offloaded model.
        for layer in layers_with(self.model, adapter_name).values():
            supply_hooks(layer, adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        release(model)
        require_checked(is_checked=getattr(config, "is_checked", False))
        check_gates(state_dict.items())
        allocate_for(model, adapter_name, state_dict, on_base=True)
        router_of(model, adapter_name).loaded_gates.remember(state_dict.items())
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        # Without this PEFT drops the argument and answers with the routed model.
        if kwargs.get("adapter_names") is not None:
            raise UsageError(
                "`adapter_names` is not supported: a bundle routes every token of a mixed batch by itself",
                hint="to choose the member yourself, call the model within `force_adapter(model, NAME)`",
            )
        yield

    def unload(self) -> nn.Module:
        """Return the base model as it was, without layers and hooks."""
        base: nn.Module = super().unload()
        stop_watching(base)
        ModelHooks.remove(base)
        return base

    def _check_merge_allowed(self) -> NoReturn:
        refuse_merge()


def _check_targets(model: nn.Module, bundle: BundleConfig) -> None:
    modules = dict(model.named_modules())
    missing = [path for path in bundle.module_paths if path not in modules]
    if missing:
        raise BundleRefused(
            f"the base `{type(model).__name__}` has no module `{missing[0]}`; "
            f"it lacks {len(missing)} of the bundle's {len(bundle.module_paths)} modules",
            hint=f"load the bundle on the model it was fused for, `{bundle.base_model_name_or_path}`",
        )
    for path in bundle.module_paths:
        module = modules[path]
        if isinstance(module, BaseTunerLayer) and not isinstance(module, MeteoraLayer):
            raise BundleRefused(
                f"`{path}` already carries an adapter of another kind, `{type(module).__name__}`",
                hint="unload it first, or load the bundle on a fresh base",
            )
        if isinstance(module, _NOT_CALLED_AS_LINEAR):
            raise BundleRefused(
                f"`{path}` of the base is `{type(module).__name__}`, expected a linear layer that is called"
            )


def register() -> None:
    """Make PEFT and transformers load bundles; once or more often is the same.

    Raises:
        MissingDependency: PEFT is too old to let a tuner check what is loaded into it.
    """
    if not hasattr(BaseTuner, "_remap_adapter_state_dict_for_load"):
        raise MissingDependency(
            f"peft is {peft.__version__}, expected 0.21 or later",
            extra="runtime",
        )
    # Any: PEFT types these by its own enum, ours only equals the string.
    entries: list[tuple[dict[Any, Any], Any]] = [
        (PEFT_TYPE_TO_CONFIG_MAPPING, MeteoraConfig),
        (PEFT_TYPE_TO_TUNER_MAPPING, MeteoraModel),
        (PEFT_TYPE_TO_PREFIX_MAPPING, MeteoraModel.prefix),
    ]
    for mapping, entry in entries:
        mapping[MeteoraPeftType.METEORA] = entry
