"""The Triton kernels against the float64 reference; run by ``test_triton.py`` in a process of its own.

On a machine with a GPU they run there, elsewhere in Triton's interpreter, which must be chosen before the
first import of triton. Every operand is inside a larger buffer of NaN and every uninitialised buffer is
filled with NaN, so that a kernel that reads or leaves what it should not is seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from meteora_registry.kernels import gpu_launch, gpu_products, operators
from meteora_registry.kernels.gate_kinds import GATE_KINDS
from meteora_registry.kernels.gpu_table import INTERPRETED, OVERRIDES, Blocks
from meteora_registry.kernels.layout import layout_of
from meteora_registry.kernels.reference import TOLERANCES, gradient_tolerance, relative_error
from meteora_registry.kernels.routed_lora import gated_lora_, routed_lora_
from meteora_registry.kernels.routing import Gate, Routing
from support.examples import TIMES
from support.routed_cases import Operands, is_floating, operands

DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The interpreter takes a second for what a GPU does in a millisecond; there each case has one type, each
# type comes in turn, and of cases that go the same way through the kernels, the quicker one is taken.
EVERY_TYPE = not INTERPRETED or TIMES > 1
GRADIENTS = ("x", "A", "Bt", "weights")
SMALL = Blocks(tokens=16, warps=4, stages=2, rank=16, bytes=64, features=32, programs=8)


def in_types(*cases: Any) -> list[Any]:
    """Return each case with a type, or with every one."""
    if EVERY_TYPE:
        return [(*case, dtype) for case in cases for dtype in DTYPES]
    # Not the remainder alone, which may be that of another parameter.
    return [(*case, DTYPES[(index + index // 3) % 3]) for index, case in enumerate(cases)]


@pytest.fixture(autouse=True)
def _triton_serves_and_buffers_are_poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(operators, "backend_for", lambda x, layout: gpu_products)
    # Cases of few tokens show the kernels, those of many the dense branch.
    monkeypatch.setattr(gpu_products, "DENSE_TOKENS", 65)
    # The same as `torch.use_deterministic_algorithms`, which first imports the inductor: seconds.
    torch.set_deterministic_debug_mode("warn")
    yield
    torch.set_deterministic_debug_mode("default")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every extent overrun its tile, and every reduction split."""
    for kernel in ("shrink", "expand", "project", "route", "spread", "outer"):
        monkeypatch.setitem(OVERRIDES, kernel, SMALL)


def poisoned(case: Operands) -> Operands:
    """Return the operands as the inner part of NaN buffers, on the device; features stay contiguous."""

    def within(tensor: torch.Tensor) -> torch.Tensor:
        rows, columns = tensor.shape
        buffer = tensor.new_full((rows + 3, columns), float("nan"), device=DEVICE)
        buffer[:rows] = tensor
        return buffer[:rows]

    inner = {name: within(value) for name, value in vars(case).items() if is_floating(value)}
    return Operands(**{**vars(case), **inner, "selection": case.selection.to(DEVICE)})


def check_against_reference(case: Operands, dtype: torch.dtype) -> None:
    """Compare the output and every gradient."""
    case, double = poisoned(case), poisoned(case).to_double()
    for name in GRADIENTS:
        getattr(case, name).requires_grad_()
        getattr(double, name).requires_grad_()
    out, expected = case.routed(), double.reference()
    assert relative_error(out, expected) <= TOLERANCES[dtype]
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(out.shape, generator=generator).to(DEVICE, dtype)
    found = torch.autograd.grad(out, [getattr(case, name) for name in GRADIENTS], cotangent)
    wanted = torch.autograd.grad(expected, [getattr(double, name) for name in GRADIENTS], cotangent.double())
    for name, grad, reference in zip(GRADIENTS, found, wanted, strict=True):
        assert relative_error(grad, reference) <= gradient_tolerance(dtype, grad), name


SHAPES = {
    "one-token": {"ranks": [8] * 6, "T": 1},
    "few-tokens": {"ranks": [8] * 6, "T": 17, "h": 33, "D": 65},
    "dense": {"ranks": [8] * 6, "T": 70},
    "dense-ragged": {"ranks": [8, 0, 24, 16, 8], "T": 66, "h": 31, "D": 47},
    "ragged": {"ranks": [8, 64, 0, 16, 24], "T": 40},
    "rank-256": {"ranks": [256, 8, 256], "T": 70, "h": 20, "D": 20},
    "rank-1": {"ranks": [1, 1, 1, 1], "T": 5},
    "unpadded": {"ranks": [3, 1, 17, 5], "T": 20},
    "eight-slots": {"ranks": [8] * 9, "T": 9, "k": 8},
    "three-slots": {"ranks": [8, 16, 8], "T": 9, "k": 3},
    "small-beside-large": {"ranks": [8, 16, 0, 256, 17, 1], "T": 40, "k": 3},
    "one-adapter": {"ranks": [16], "T": 9, "k": 1},
    "odd": {"ranks": [8, 8, 8], "T": 3, "h": 1, "D": 1},
}


# Each goes the way of another shape: ragged ones, three slots, a rank of 256 or ranks without padding.
SLOW_SHAPES = {"dense", "eight-slots", "rank-1", "rank-256", "three-slots"}
TAKEN_SHAPES = [shape for shape in SHAPES if EVERY_TYPE or shape not in SLOW_SHAPES]


@pytest.mark.parametrize(("shape", "dtype"), in_types(*((shape,) for shape in TAKEN_SHAPES)), ids=str)
def test_output_and_gradients_are_the_references(shape: str, dtype: torch.dtype) -> None:
    check_against_reference(operands(**SHAPES[shape], dtype=dtype), dtype)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("T", "h", "dtype"), in_types(*([(18, 70), (66, 33)] if EVERY_TYPE else [(18, 33)])), ids=str
)
def test_overrun_tiles_and_split_sums_change_nothing(T: int, h: int, dtype: torch.dtype) -> None:
    check_against_reference(operands([8, 0, 40, 8], T=T, h=h, D=40, dtype=dtype), dtype)


@pytest.mark.skipif(not EVERY_TYPE, reason="the fused gate has a case of 512 adapters, too")
def test_512_adapters_are_no_special_case() -> None:
    case = poisoned(operands([8] * 512, T=18))
    case.x.requires_grad_()
    double = case.to_double()
    out, expected = case.routed(), double.reference()
    assert relative_error(out, expected) <= TOLERANCES[torch.float32]
    found, wanted = (torch.autograd.grad(y.sum(), case.x)[0] for y in (out, expected))
    assert relative_error(found, wanted) <= gradient_tolerance(torch.float32, found)


def test_an_adapter_selected_twice_counts_twice() -> None:
    case = operands([8, 8, 3], T=12)
    case.selection = case.selection[:, :1].expand(-1, 2).contiguous()
    check_against_reference(case, torch.float32)


@pytest.mark.parametrize("T", [4, 66])
def test_adapters_that_do_not_exist_add_nothing(T: int) -> None:
    case = poisoned(operands([8, 8, 8], T=T, k=2))
    layout = layout_of(case.offsets, case.scaling)

    def routed() -> torch.Tensor:
        routing = Routing(case.selection, case.weights)
        return gpu_products.forward(case.x, case.A, case.Bt, layout, routing)

    case.weights[:, 1] = 0
    expected = routed()
    for unknown in (-1, 3, 2**40):
        case.selection[:, 1], case.weights[:, 1] = unknown, 1
        torch.testing.assert_close(routed(), expected)


@pytest.mark.parametrize("T", [3, 70])
def test_a_poisoned_token_stays_alone(T: int) -> None:
    case = poisoned(operands([8, 8, 3, 0], T=T))
    clean = case.routed()
    case.x[1] = float("nan")
    others = torch.arange(T, device=DEVICE) != 1
    torch.testing.assert_close(case.routed()[others], clean[others])
    case.x.requires_grad_()
    case.A.requires_grad_()
    case.Bt.requires_grad_()
    case.selection[1] = 1
    cotangent = torch.ones(T, 24, device=DEVICE)
    cotangent[1] = float("nan")
    dx, dA, dBt = torch.autograd.grad(case.routed(), (case.x, case.A, case.Bt), cotangent)
    assert dx[others].isfinite().all()
    for grad in (dA, dBt):
        assert grad[8:16].isnan().any()
        assert grad[:8].isfinite().all()
        assert grad[16:].isfinite().all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("T", [3, 70])
def test_an_overflow_of_an_unselected_adapter_stays_out(T: int) -> None:
    case = poisoned(operands([8, 8, 8], T=T, k=1))
    case.selection.zero_()
    case.x.fill_(3e38)
    case.A[:8] = 1e-38
    out = case.routed()
    assert out.isfinite().all()
    assert relative_error(out, case.reference()) <= TOLERANCES[torch.float32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("T", [2, 70])
def test_activations_of_ten_thousand_are_finite_and_right(T: int, dtype: torch.dtype) -> None:
    case = poisoned(operands([8] * 5, T=T, h=256, D=40, dtype=dtype))
    case.x.mul_(1e4)
    case.A.mul_(8)
    case.Bt.mul_(1e-3)
    assert (case.x.double() @ case.A.double().T).abs().max() > 7e4
    out = case.routed()
    assert out.isfinite().all()
    assert relative_error(out, case.reference()) <= TOLERANCES[dtype]


# The interpreter runs one program after another, so that only its buffers could differ.
@pytest.mark.skipif(not EVERY_TYPE, reason="the interpreter has one order of programs")
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("T", [5] if INTERPRETED else [5, 70])
def test_repeated_runs_are_bit_identical(T: int) -> None:
    case = poisoned(operands([8, 24, 8], T=T, h=70, dtype=torch.bfloat16))
    leaves = [getattr(case, name).requires_grad_() for name in GRADIENTS]
    runs = [case.routed() for _ in range(2)]
    assert torch.equal(*runs)
    grads = [torch.autograd.grad(out, leaves, torch.ones_like(out)) for out in runs]
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


@pytest.mark.parametrize(
    ("layout", "T", "dtype"), in_types(*product(["whole", "slice", "transposed"], [4, 70])), ids=str
)
def test_adding_in_place_is_base_plus_routed(layout: str, T: int, dtype: torch.dtype) -> None:
    case = poisoned(operands([8, 0, 24, 8], T=T, dtype=dtype))
    base = torch.randn(T, 24).to(DEVICE, dtype)
    wide = torch.zeros(T, 60, dtype=dtype, device=DEVICE)
    out = {"whole": base.clone(), "slice": wide[:, 5:29], "transposed": wide[:, :24].T.contiguous().T}[layout]
    out.copy_(base)
    routed_lora_(out, **vars(case))
    assert relative_error(out, base.double() + case.reference()) <= TOLERANCES[dtype]
    assert not wide[:, 29:].any()


def test_input_with_strided_features_is_taken() -> None:
    case = poisoned(operands([8, 8], T=6))
    expected = case.routed()
    case.x = case.x.T.contiguous().T
    torch.testing.assert_close(case.routed(), expected)


@pytest.mark.parametrize("T", [6, 70] if EVERY_TYPE else [6])
@pytest.mark.parametrize("name", ["selection", "weights"])
def test_strided_routing_is_taken(name: str, T: int) -> None:
    case = poisoned(operands([8, 0, 24, 8], T=T))
    leaves = [getattr(case, leaf).requires_grad_() for leaf in ("x", "A", "Bt")]

    def results() -> list[torch.Tensor]:
        out = case.routed()
        return [out, *torch.autograd.grad(out, leaves, torch.ones_like(out))]

    expected = results()
    setattr(case, name, getattr(case, name).T.contiguous().T)
    assert all(torch.equal(*pair) for pair in zip(results(), expected, strict=True))


def gated_case(
    T: int,
    *,
    ranks: list[int] | None = None,
    gate: dict[str, object] | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Operands, Gate]:
    ranks = [8] * 5 if ranks is None else ranks
    case = poisoned(operands(ranks, T=T, h=40, D=24, dtype=dtype, k=1))
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(len(ranks), 40, generator=generator).to(DEVICE)
    bias = torch.randn(len(ranks), generator=generator).to(DEVICE)
    return case, Gate(**{"weight": weight, "bias": bias, "kind": "linear", "top_k": 2, **(gate or {})})


def check_gated(case: Operands, gate: Gate) -> None:
    T = case.x.shape[0]
    base = torch.randn(T, 24).to(DEVICE, case.x.dtype)
    out = base.clone()
    found = gated_lora_(out, case.x, case.A, case.Bt, case.offsets, case.scaling, gate)
    expected = gate.route(case.x)
    assert torch.equal(found.selection, expected.selection)
    torch.testing.assert_close(found.weights, expected.weights, rtol=1e-4, atol=1e-5)
    case.selection, case.weights = expected.selection, expected.weights
    assert relative_error(out, base.double() + case.reference()) <= TOLERANCES[case.x.dtype]


@pytest.mark.parametrize(("T", "kind", "dtype"), in_types(*product([1, 19, 70], GATE_KINDS)), ids=str)
def test_fused_gate_routes_and_adds(T: int, kind: str, dtype: torch.dtype) -> None:
    check_gated(*gated_case(T, gate={"kind": kind, "temperature": 0.6}, dtype=dtype))


@pytest.mark.parametrize("T", [1, 6])
def test_fused_gate_adds_eps_to_the_norm(T: int) -> None:
    # About as long as the tokens: an eps that is only a lower bound would show.
    check_gated(*gated_case(T, gate={"kind": "normalised", "eps": 4.0}))


@pytest.mark.parametrize("T", [2, 70])
@pytest.mark.parametrize("k", [1, 5])
def test_fused_gate_takes_any_number_of_slots_and_no_bias(k: int, T: int) -> None:
    check_gated(*gated_case(T, gate={"top_k": k, "bias": None}))


@pytest.mark.parametrize("T", [2, 70])
def test_fused_gate_takes_a_strided_bias(T: int) -> None:
    case, gate = gated_case(T)
    check_gated(case, replace(gate, bias=torch.randn(10, device=DEVICE)[::2]))


@pytest.mark.parametrize("ranks", [[8, 0, 24, 16], [128] * 8, [8] * 512], ids=["ragged", "large", "many"])
def test_fused_gate_takes_any_layout(ranks: list[int]) -> None:
    check_gated(*gated_case(5, ranks=ranks))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("T", "kind"),
    # A token's length has planes of its own, read by the expansion or, for many tokens, by the kernel before.
    list(product([3, 18, 70], GATE_KINDS))
    if EVERY_TYPE
    else [(3, "linear"), (18, "absolute"), (3, "normalised"), (70, "normalised")],
)
def test_fused_gate_adds_up_its_split_sums(T: int, kind: str) -> None:
    check_gated(*gated_case(T, ranks=[8, 0, 24] + [8] * 15, gate={"kind": kind}))


@pytest.mark.parametrize("T", [3, 70] if EVERY_TYPE else [3])
def test_fused_gate_breaks_ties_and_bans_as_the_plain_one(T: int) -> None:
    case, _ = gated_case(T)
    weight, infinity = torch.zeros(5, 40, device=DEVICE), float("inf")
    for bias in (
        [0.0] * 5,
        [0.0, 1.0, -infinity, 1.0, -0.0],
        [-infinity, -infinity, 2.0, -infinity, -infinity],
    ):
        check_gated(case, Gate(weight, torch.tensor(bias, device=DEVICE), "linear", 3))


@pytest.mark.parametrize("T", [3, 70])
def test_fused_gate_of_a_nan_token_stays_in_range_and_says_nan(T: int) -> None:
    case, gate = gated_case(T)
    out, clean = torch.zeros(2, T, 24, device=DEVICE)
    gated_lora_(clean, case.x, case.A, case.Bt, case.offsets, case.scaling, gate)
    case.x[1] = float("nan")
    routing = gated_lora_(out, case.x, case.A, case.Bt, case.offsets, case.scaling, gate)
    assert routing.selection[1].tolist() == [0, 1]
    assert routing.weights[1].isnan().all()
    assert out[1].isnan().all()
    others = torch.arange(T, device=DEVICE) != 1
    torch.testing.assert_close(out[others], clean[others])


def test_one_slot_weighs_exactly_one() -> None:
    case, gate = gated_case(9, gate={"top_k": 1, "temperature": 0.1})
    out = torch.zeros(9, 24, device=DEVICE)
    routing = gated_lora_(out, case.x, case.A, case.Bt, case.offsets, case.scaling, gate)
    assert torch.equal(routing.weights, torch.ones(9, 1, device=DEVICE))


@pytest.mark.parametrize("ranks", [[8] * 6, [8, 0, 24, 16]], ids=str)
def test_dense_branch_serves_a_few_tokens(ranks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_products, "DENSE_TOKENS", 8)
    monkeypatch.setattr(gpu_launch, "routed", None)
    monkeypatch.setattr(gpu_launch, "gated", None)
    check_against_reference(operands(ranks, T=8), torch.float32)
    check_gated(*gated_case(8, ranks=ranks))


def test_fp32_products_do_not_follow_torch_into_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    few = layout_of([0, 8], [1.0])
    assert gpu_products.takes_dense(65, few, torch.float32)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert not gpu_products.takes_dense(65, few, torch.float32)
        assert gpu_products.takes_dense(65, few, torch.bfloat16)
        check_against_reference(operands([8] * 6, T=70), torch.float32)
    finally:
        torch.set_float32_matmul_precision(before)


def test_decisions_depend_on_shapes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    few, many = layout_of([0, 8], [1.0]), layout_of([0, 1024], [1.0])
    assert gpu_products.takes_dense(8, few, torch.bfloat16)
    assert not gpu_products.takes_dense(7, few, torch.bfloat16)
    assert not gpu_products.takes_dense(8, many, torch.bfloat16)
    assert not gpu_products.takes_dense(8, few, torch.float16)


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU: a graph has to be captured")
@pytest.mark.parametrize("T", [1, 70])
def test_calls_can_be_captured_in_a_graph(T: int) -> None:
    case, gate = gated_case(T, dtype=torch.bfloat16)
    out = torch.zeros(T, 24, dtype=torch.bfloat16, device=DEVICE)
    arguments = (case.x, case.A, case.Bt, case.offsets, case.scaling)
    routing = gated_lora_(out, *arguments, gate)
    routed_lora_(out, *arguments, routing.selection, routing.weights)
    expected = out.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out.zero_()
        routing = gated_lora_(out, *arguments, gate)
        routed_lora_(out, *arguments, routing.selection, routing.weights)
    graph.replay()
    assert torch.equal(out, expected)
