"""Training of gates: refused or warned of where no gradient reaches them, and noticed when they are saved.

torch reports neither that a decision passes no gradient nor that the only slot of a token has the weight 1,
whatever its gate computes. Trained gates are known by their values, since a training loop may be of any kind,
or go on from a checkpoint.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..schemas.bundle import GATE_TENSORS, GATE_TRAINED, TENSOR_PREFIX, TRAINED, Fitting, TrainedFrom
from ..schemas.digest import Digest
from ..schemas.errors import UsageError
from .requirements import is_gate

if TYPE_CHECKING:
    from .layer import MeteoraLayer
    from .peft_config import MeteoraConfig
    from .router import BundleRouter, StartedPass

_FIT = "fit the gates with `meteora-registry gate fit`"
_ONE_SLOT = (
    "the gates are trained with `top_k` 1: the one member that a token takes has the weight 1 whatever its "
    "gate computes, so the gradient is 0 and nothing is learnt; train within `route_as(model, top_k=2)`"
)
_ONE_MEMBER = "the gates of a bundle of one member are trained: it serves every token, so nothing is learnt"


def check_training(module: nn.Module, started: Iterable[StartedPass]) -> None:
    """Check a pass of a base in training, with gradients, for gates that are trained and get none.

    Raises:
        UsageError: nothing else is trained either, so there would be no gradient at all.
    """
    for each in started:
        gates = list(_trained_gates(each.router))
        if not gates:
            continue
        if each.passes_no_gradient:
            _refuse_unless_others(module, gates, each)
        elif each.rule.top_k == 1:
            has_choice = len(each.router.members) > 1
            warnings.warn(_ONE_SLOT if has_choice else _ONE_MEMBER, UserWarning, stacklevel=2)


def _refuse_unless_others(module: nn.Module, gates: list[Tensor], started: StartedPass) -> None:
    own = {id(gate) for gate in gates}
    if any(each.requires_grad and id(each) not in own for each in module.parameters()):
        return
    cause = "a member is forced" if started.is_forced else f"the scope `{started.rule.scope}` decides ahead"
    raise UsageError(
        f"the gates of bundle `{started.router.adapter_name}` cannot be trained here: {cause}, and that "
        "passes no gradient",
        hint=f"train within `route_as(model, scope='token', top_k=2)`, or {_FIT}",
    )


def _trained_gates(router: BundleRouter) -> Iterator[Tensor]:
    for layer in router.layers.values():
        for tensor in GATE_TENSORS:
            parameters = getattr(layer, tensor)
            if router.adapter_name in parameters and parameters[router.adapter_name].requires_grad:
                yield parameters[router.adapter_name]


class LoadedGates:
    """The values that a bundle's gates had when they were loaded, and what a save states of its own.

    Attributes:
        manifest_sha256: of the bundle, which a save names if its gates were trained; None without a manifest.
    """

    def __init__(self, config: MeteoraConfig) -> None:
        self._config = config
        self.manifest_sha256: Digest | None = config.manifest_sha256
        self._gate, self._features = config.gate, tuple(config.required_features)
        self._loaded: dict[str, Digest] = {}
        self._changed: set[str] = set()

    def remember(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Remember the values of those gates among some tensors that are loaded for the first time."""
        for stored_name, tensor in tensors:
            name = stored_name.removeprefix(TENSOR_PREFIX)
            if is_gate(name) and name not in self._loaded:
                self._loaded[name] = _digest(tensor)

    def compare(self, name: str, gate: Tensor) -> None:
        """Compare a gate, by path and tensor, and let the config state whether any was trained."""
        loaded = self._loaded.get(name)
        # Offloaded gates are not trained.
        if loaded is None or gate.is_meta:
            return
        if _digest(gate) == loaded:
            self._changed.discard(name)
        else:
            self._changed.add(name)
        self._config.gate, self._config.required_features = self._gate, self._features
        if self._changed:
            self._config.gate = self._gate | {"fitted": self._fitting.model_dump(mode="json")}
            self._config.required_features = tuple(sorted({*self._features, GATE_TRAINED}))

    @property
    def _fitting(self) -> Fitting:
        earlier = self._config.bundle.gate.fitted
        # Training that goes on from a checkpoint began with the checkpoint's bundle.
        trained_from = earlier.trained_from if isinstance(earlier, Fitting) else None
        if self.manifest_sha256 is not None:
            trained_from = TrainedFrom(bundle=None, manifest_sha256=self.manifest_sha256)
        return Fitting(method=TRAINED, data=(), trained_from=trained_from)


def note_training(layer: MeteoraLayer, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Compare the gates in a layer's state dict, which a save takes before it writes the config."""
    for adapter_name, router in layer.meteora_routers.items():
        path = layer.meteora_plans[adapter_name].layout.path
        for tensor in GATE_TENSORS:
            gate = state.get(f"{prefix}{tensor}.{adapter_name}")
            if gate is not None:
                router.loaded_gates.compare(f"{path}.{tensor}", gate)


def _digest(gate: Tensor) -> Digest:
    return Digest.of_bytes(gate.detach().cpu().contiguous().numpy().tobytes())
