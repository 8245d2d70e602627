"""The gates of a routed model that PEFT saved, read as new gates of the bundle that was trained.

Only gates are trained, so everything else has to be the bundle's: the config but for its gates' fit, and the
factors and request gates byte for byte.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..bundle import Bundle
from ..files.progress import Progress, Step, silent
from ..schemas import bundle as names
from ..schemas.bundle import BundleConfig, Fitting, TrainedFrom
from ..schemas.errors import BundleRefused
from .refit import NewGates
from .tensor_files import TensorFile, bytes_of

# PEFT may change these when it saves, and the gates' fit is what is new.
_FREE = frozenset(
    {
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "task_type",
        "auto_mapping",
        "required_features",
    }
)


def read_trained_gates(
    saved: Bundle, bundle: Bundle, trained_from: TrainedFrom, *, progress: Progress = silent
) -> NewGates:
    """Read the gates of a saved model, after it was found to be the bundle with other gates.

    Args:
        saved: the model's folder; only its config and its weights are read.
        bundle: the one that was trained.
        trained_from: what the new bundle states of that one.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        BundleRefused: something else than gates differs, or no gate does.
        InvalidDocument: the model's config breaks the schema.
        SourceUnreadable: a file cannot be read.
    """
    called = trained_from.bundle or str(bundle.folder)
    _check_config(saved, bundle.config, called)
    _check_tensors(saved, bundle, called)
    gate = saved.config.gate.model_copy(
        update={"fitted": Fitting(method=names.TRAINED, data=(), trained_from=trained_from)}
    )
    step = Step("comparing", len(bundle.config.module_paths), progress)
    with _weights_of(saved) as found, _weights_of(bundle) as own:
        read = _Comparison(bundle.config, found, own)
        for path in bundle.config.module_paths:
            read.module(path, called)
            step.advance()
    if not read.has_changes:
        raise BundleRefused(
            f"the gates in `{saved.folder}` are those of `{called}`: nothing was trained",
            hint="use that bundle",
        )
    return NewGates(gate, bundle.config.top_k, bundle.config.temperature, read.gates, read.request)


def _weights_of(bundle: Bundle) -> TensorFile:
    return TensorFile(bundle.folder / names.WEIGHTS_FILE, bundle.header)


def _check_config(saved: Bundle, own: BundleConfig, called: str) -> None:
    found, expected = _fixed(saved.config), _fixed(own)
    # A gate without a threshold or request gates lacks their keys.
    differing = sorted(key for key in found | expected if found.get(key) != expected.get(key))
    if differing:
        raise BundleRefused(
            f"`{saved.folder}` was not trained from `{called}`: its config has another `{differing[0]}`",
            hint="name the bundle that it was trained from with `--from`",
        )


def _fixed(config: BundleConfig) -> dict[str, Any]:
    value = config.model_dump(mode="json")
    gate = {f"gate.{key}": each for key, each in value.pop("gate").items() if key != "fitted"}
    return {key: each for key, each in (value | gate).items() if key not in _FREE}


def _check_tensors(saved: Bundle, bundle: Bundle, called: str) -> None:
    found = {entry.name: f"{entry.dtype} {list(entry.shape)}" for entry in saved.header.tensors}
    expected = {spec.name: f"{spec.dtype} {list(spec.shape)}" for spec in bundle.tensors}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise BundleRefused(
                f"`{saved.folder}` was not trained from `{called}`: `{name}` is "
                f"{found.get(name, 'missing')}, expected {expected.get(name, 'no such tensor')}"
            )


class _Comparison:
    """The weights of a saved model beside those of its bundle.

    Attributes:
        gates: the model's rows and bias by module, as ``NewGates`` has them.
        request: the tensors of its request gates, likewise.
        has_changes: whether any gate that was read differs from the bundle's.
    """

    def __init__(self, config: BundleConfig, found: TensorFile, own: TensorFile) -> None:
        self.gates: dict[str, tuple[Tensor, Tensor]] = {}
        self.request: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.has_changes = False
        self._config = config
        self._found = found
        self._own = own

    def module(self, path: str, called: str) -> None:
        """Check the factors of a module, if it has any, and read what it has of gates."""
        for tensor in names.FACTORS if path in self._config.layouts else ():
            if self._read(path, tensor)[1]:
                raise BundleRefused(
                    f"`{path}.{tensor}` differs from that of `{called}`: members were trained, and gates "
                    "alone can be adopted",
                    hint="train the members as adapters of their own, and fuse them again",
                )
        if self._config.has_gate(path):
            rows = self._gate(path, names.TENSOR_GATE)
            bias = self._gate(path, names.TENSOR_GATE_BIAS) if self._config.gate.bias else rows[:, 0]
            self.gates[path] = (rows, bias)
        if self._config.request_classes(path):
            rows, bias, gram = (self._request(path, tensor, called) for tensor in names.REQUEST_TENSORS)
            self.request[path] = (rows, bias, gram)

    def _gate(self, path: str, tensor: str) -> Tensor:
        found, differs = self._read(path, tensor)
        self.has_changes |= differs
        return found

    def _request(self, path: str, tensor: str, called: str) -> Tensor:
        found, differs = self._read(path, tensor)
        if differs:
            raise BundleRefused(
                f"`{path}.{tensor}` differs from that of `{called}`: request gates get no gradient, and the "
                "threshold and the error rates in the config are of the bundle's own",
                hint="fit them with `meteora-registry gate fit`",
            )
        return found

    def _read(self, path: str, tensor: str) -> tuple[Tensor, bool]:
        name = names.tensor_name(path, tensor)
        found, own = self._found.read(name), self._own.read(name)
        return found, bytes_of(found) != bytes_of(own)
