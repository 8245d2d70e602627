"""Forged request gates in a module that no member touches, where no digest of a member's file reaches."""

from __future__ import annotations

from typing import Any

import torch

from .forger import PREFIX, Forger, forgery

OBSERVED = "model.layers.0.mlp.up_proj"
FEATURES = 32
_TENSORS = ("meteora_request_gate", "meteora_request_gate_bias", "meteora_request_gram")


def _request(forger: Forger) -> dict[str, Any]:
    found: dict[str, Any] = forger.config["gate"]["request"]
    return found


def _tensor(name: str, path: str = OBSERVED) -> str:
    return f"{PREFIX}{path}.{name}"


def _move(forger: Forger, path: str) -> None:
    _request(forger).update(modules=[path], observed={path: FEATURES})
    for name in _TENSORS:
        forger.tensors[_tensor(name, path)] = forger.tensors.pop(_tensor(name))
    forger.seal()


@forgery("nothing: a bundle that observes a module, sealed again", start="observed")
def observed_sealed_again(forger: Forger) -> None:
    forger.seal()


@forgery("a request gate of an observed module without its Gram matrix", start="observed")
def observed_gram_missing(forger: Forger) -> None:
    del forger.tensors[_tensor("meteora_request_gram")]
    forger.seal()


@forgery("factors in a module that is only observed", start="observed")
def observed_factors_added(forger: Forger) -> None:
    forger.tensors[_tensor("meteora_A")] = torch.ones(8, FEATURES)
    forger.tensors[_tensor("meteora_B")] = torch.ones(8, 48)
    forger.seal()


@forgery("other input features of an observed module than its gate has", start="observed")
def observed_features_other(forger: Forger) -> None:
    _request(forger)["observed"][OBSERVED] = FEATURES // 2
    forger.seal()


@forgery("an observed module that the config does not state", start="observed")
def observed_not_stated(forger: Forger) -> None:
    del _request(forger)["observed"]
    forger.seal()


@forgery("a target module that is called observed", start="observed")
def observed_target(forger: Forger) -> None:
    _move(forger, forger.targets[0])


@forgery("`gate-observed` taken out of the required features", start="observed")
def observed_undeclared(forger: Forger) -> None:
    forger.config["required_features"].remove("gate-observed")
    forger.seal()


@forgery("a request gate of an observed module with numbers that are not finite", start="observed")
def observed_poisoned(forger: Forger) -> None:
    forger.tensors[_tensor("meteora_request_gate")][0, 0] = torch.nan
    forger.seal()


@forgery("an observed module that the base does not have", start="observed")
def observed_nowhere(forger: Forger) -> None:
    _move(forger, "model.layers.9.mlp.up_proj")


@forgery("an observed module whose input in the base has other features", start="observed")
def observed_elsewhere(forger: Forger) -> None:
    _move(forger, "model.layers.0.mlp.down_proj")


@forgery("rows of the request gate moved to the next class", start="observed")
def observed_rows_rotated(forger: Forger) -> None:
    gate = forger.tensors[_tensor("meteora_request_gate")]
    gate.copy_(gate.roll(1, dims=0))
    forger.seal()
