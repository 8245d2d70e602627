"""The ways of serving a batch that are compared: the base, the right adapter, one of the scopes, averages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from meteora_registry.kernels.routing import Routing
from meteora_registry.runtime import RoutingRecord, load_bundle, route_as, routing, uniform
from meteora_registry.runtime.active_bundles import only_router, overridden
from meteora_registry.runtime.scopes.passes import DecidedPass
from meteora_registry.schemas.gate_choices import Scope

from .scoring import TextBatch
from .tasks import TASK_NAMES

Kind = Literal["base", "oracle", "uniform", "weighted", "routed"]


@dataclass(frozen=True, slots=True)
class Way:
    """One way, by what it needs to be named in a row.

    Attributes:
        kind: who serves.
        gates: the bundle whose gates are asked, `arrow` or the name of a fit; only of kind `routed`.
        scope: what one decision serves.
        top_k: members for each token.
        temperature: of the softmax over them.
        abstain: the confidence below which the base alone serves.
    """

    kind: Kind
    gates: str | None = None
    scope: Scope | None = None
    top_k: int = 1
    temperature: float = 1.0
    abstain: float | None = None

    @property
    def name(self) -> str:
        """A short name, unique among the ways."""
        if self.kind != "routed":
            return self.kind
        parts = [f"{self.gates} {self.scope}", f"k={self.top_k}"]
        parts += [f"T={self.temperature:g}"] if self.temperature != 1.0 else []
        parts += [f"abstain={self.abstain:g}"] if self.abstain is not None else []
        return " ".join(parts)


class Models:
    """The model with one bundle at a time, loaded when a way needs another than the last."""

    def __init__(self, base: PreTrainedModel, bundles: dict[str, Path], adapters: dict[str, Path]) -> None:
        self._base = base
        self._bundles = bundles
        self._adapters = adapters
        self._loaded: str | None = None
        self._model: nn.Module = base

    def model_for(self, way: Way) -> nn.Module:
        """Return the model that a way runs on."""
        wanted = {"base": "base", "weighted": "weighted"}.get(
            way.kind, way.gates or next(iter(self._bundles))
        )
        if wanted != self._loaded:
            self._unload()
            self._model = self._load(wanted)
            self._loaded = wanted
        return self._model

    def _load(self, wanted: str) -> nn.Module:
        if wanted == "base":
            return self._base
        if wanted == "weighted":
            return average_by_peft(self._base, self._adapters)
        return load_bundle(self._bundles[wanted], self._base).model

    def _unload(self) -> None:
        if isinstance(self._model, PeftModel):
            self._base = self._model.unload()
            if hasattr(self._base, "peft_config"):
                del self._base.peft_config


def average_by_peft(base: PreTrainedModel, adapters: dict[str, Path]) -> PeftModel:
    """Return the base with PEFT's own average of the adapters: `cat`, which alone allows several ranks."""
    first, *rest = adapters
    model = PeftModel.from_pretrained(base, adapters[first], adapter_name=first)
    for name in rest:
        model.load_adapter(adapters[name], adapter_name=name)
    weights = [1 / len(adapters)] * len(adapters)
    model.add_weighted_adapter(list(adapters), weights, "average", combination_type="cat")
    model.set_adapter("average")
    return model.eval()


@contextmanager
def served(model: nn.Module, way: Way, batch: TextBatch) -> Iterator[RoutingRecord | None]:
    """Serve a batch in a way, within the block; yield the record of the routing where there is one."""
    if way.kind in ("base", "weighted"):
        yield None
        return
    if way.kind != "routed":
        with uniform(model) if way.kind == "uniform" else forced_tokens(model, batch.members):
            yield None
        return
    rule = route_as(model, scope=way.scope, top_k=way.top_k, temperature=way.temperature, abstain=way.abstain)
    with rule, routing(model) as record:
        yield record


@contextmanager
def forced_tokens(model: nn.Module, members: Tensor) -> Iterator[None]:
    """Force each token [B, T], within the block, to the member of the task that ``members`` has there."""
    router = only_router(model)
    order = torch.tensor([router.members.index(name) for name in TASK_NAMES])
    selection = order[members].unsqueeze(-1)
    decided = DecidedPass(Routing(selection, torch.ones(selection.shape)))
    with overridden(model, lambda _: decided):
        yield
