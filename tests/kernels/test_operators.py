"""The torch operators: schema, fake kernels, autograd registration, compilation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from meteora_registry.kernels.gate_kinds import GATE_KINDS
from meteora_registry.kernels.routed_lora import gated_lora_, routed_lora, routed_lora_
from meteora_registry.kernels.routing import Gate
from support.routed_cases import Operands, operands

OPERATORS = torch.ops.meteora


def positional(case: Operands) -> tuple[object, ...]:
    return (case.x, case.A, case.Bt, case.offsets, case.scaling, case.selection, case.weights)


@pytest.mark.parametrize("T", [1, 20])
def test_forward_passes_opcheck(T: int) -> None:
    case = operands([8, 0, 3], T=T)
    torch.library.opcheck(OPERATORS.routed_lora.default, (*positional(case), False))
    for tensor in (case.x, case.A, case.Bt, case.weights):
        tensor.requires_grad_()
    torch.library.opcheck(OPERATORS.routed_lora.default, (*positional(case), True))


def test_in_place_passes_opcheck() -> None:
    case = operands([8, 0, 3])
    torch.library.opcheck(OPERATORS.routed_lora_.default, (torch.zeros(5, 24), *positional(case)))


@pytest.mark.parametrize("kind", GATE_KINDS)
def test_gated_passes_opcheck(kind: str) -> None:
    case = operands([8, 0, 3])
    arguments = (
        torch.zeros(5, 24),
        *positional(case)[:5],
        torch.randn(3, 16),
        torch.randn(3),
        kind,
        2,
        0.7,
        1e-6,
    )
    torch.library.opcheck(OPERATORS.gated_lora_.default, arguments)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_backward_passes_opcheck(trained: bool) -> None:
    case = operands([8, 0, 3])
    z = torch.randn(5, 2, 8)
    arguments = (
        torch.randn(5, 24),
        case.x if trained else None,
        case.A,
        case.Bt,
        case.offsets,
        case.scaling,
        case.selection,
        case.weights,
        z,
        trained,
        trained,
    )
    torch.library.opcheck(OPERATORS.routed_lora_backward.default, arguments)


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_compiled_call_is_one_graph_and_the_same(grad: bool) -> None:
    case = operands([8, 0, 8], leading=(2, 3))
    case.x.requires_grad_(grad)

    def block(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        y = routed_lora(x * 2, case.A, case.Bt, case.offsets, case.scaling, case.selection, weights)
        return torch.relu(y)

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    found, expected = compiled(case.x, case.weights), block(case.x, case.weights)
    torch.testing.assert_close(found, expected)
    if grad:
        found_grad, expected_grad = (torch.autograd.grad(y.sum(), case.x)[0] for y in (found, expected))
        torch.testing.assert_close(found_grad, expected_grad)


def test_compiled_in_place_call_is_one_graph_and_the_same() -> None:
    case = operands([8, 0, 8])

    def block(base: torch.Tensor) -> torch.Tensor:
        out = base * 2
        return routed_lora_(out, **vars(case))

    base = torch.randn(5, 24)
    with torch.inference_mode():
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(base), block(base))


def test_compiled_gated_call_is_one_graph_and_the_same() -> None:
    case = operands([8, 0, 8], leading=(2, 3))
    gate = Gate(torch.randn(3, 16), None, "absolute", 2)

    def block(base: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        out = base * 2
        routing = gated_lora_(out, case.x, case.A, case.Bt, case.offsets, case.scaling, gate)
        return out, routing.selection, routing.weights

    base = torch.randn(2, 3, 24)
    with torch.inference_mode():
        found = torch.compile(block, fullgraph=True, backend="aot_eager")(base)
        torch.testing.assert_close(found, block(base))


def test_compiled_call_takes_another_number_of_tokens_without_a_new_graph_each() -> None:
    compiled = torch.compile(
        lambda **kwargs: routed_lora(**kwargs), fullgraph=True, backend="aot_eager", dynamic=True
    )
    compiled(**vars(operands([8, 8], T=3)))
    with torch.compiler.set_stance("fail_on_recompile"):
        for T in (5, 7, 9):
            case = operands([8, 8], T=T)
            torch.testing.assert_close(compiled(**vars(case)), case.routed())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference_modes_are_the_same_function(mode: type) -> None:
    case = operands([8, 3, 8])
    expected = case.routed()
    with mode():
        assert torch.equal(case.routed(), expected)


def test_operator_and_eager_call_are_the_same_function() -> None:
    case = operands([8, 3, 8])
    out, z = OPERATORS.routed_lora(*positional(case), True)
    assert torch.equal(out, case.routed())
    assert z.shape == (5, 2, 8)


# torch 2.13's own inductor scripts a class while it is imported.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_keeps_the_call_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    case = operands([8, 0, 8])
    case.x.requires_grad_()
    compiled = torch.compile(lambda x: routed_lora(**{**vars(case), "x": x}), fullgraph=True)
    found, expected = compiled(case.x), case.routed()
    torch.testing.assert_close(found, expected)
    found_grad, expected_grad = (torch.autograd.grad(y.sum(), case.x)[0] for y in (found, expected))
    torch.testing.assert_close(found_grad, expected_grad)
