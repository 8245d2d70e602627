"""Each choice of a gate's config is registered where it is computed, and only those are."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from meteora_registry.fuser.gates import INITIALISATIONS
from meteora_registry.kernels.gate_kinds import GATE_KINDS
from meteora_registry.registry.workflows.gate_fit import FitRequest
from meteora_registry.runtime.router import SCOPE_ROUTINGS
from meteora_registry.schemas.errors import UsageError
from meteora_registry.schemas.gate_choices import (
    DECISION_SCOPES,
    INITIAL_GATE_KINDS,
    SCOPES,
    FittedKind,
    GateKind,
    InitialGate,
    Scope,
)
from support.gate_definitions import DEFINITIONS


def test_gate_kinds_of_a_config_are_those_of_the_kernels() -> None:
    assert tuple(GATE_KINDS) == get_args(GateKind)
    assert DEFINITIONS.keys() == GATE_KINDS.keys()


def test_kinds_that_can_be_fitted_are_those_that_scale_their_input() -> None:
    fitted = tuple(name for name, kind in GATE_KINDS.items() if kind.scale_input is not None)
    assert fitted == get_args(FittedKind)


def test_initialisations_of_a_config_are_those_of_the_fuser() -> None:
    assert tuple(INITIALISATIONS) == tuple(INITIAL_GATE_KINDS) == get_args(InitialGate)


def test_scopes_have_traits_and_a_way_to_route() -> None:
    assert tuple(SCOPES) == tuple(SCOPE_ROUTINGS) == get_args(Scope)
    assert {scope for scope, routing in SCOPE_ROUTINGS.items() if routing.decide} == DECISION_SCOPES


def test_fit_for_an_unknown_scope_is_refused_when_it_is_asked_for() -> None:
    expected = "the scope is `page`, expected one of `token`, `layer`, `prompt`, `prompt+token`, `segment`"
    with pytest.raises(UsageError) as raised:
        FitRequest("base", Path("data"), scope="page")  # type: ignore[arg-type]  # the fault that is meant
    assert raised.value.message == expected
