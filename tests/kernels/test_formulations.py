"""Each CPU formulation alone, whether or not the cost model would take it, and what the model takes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
import torch

from meteora_registry.kernels import cpu_cost
from meteora_registry.kernels.formulations import routed_masked
from meteora_registry.kernels.layout import layout_of
from meteora_registry.kernels.products import CPU_EXPANDS, CPU_SHRINKS
from meteora_registry.kernels.reference import TOLERANCES, relative_error
from meteora_registry.kernels.routing import FixedRouting, Routing
from meteora_registry.kernels.slots import Slots
from support.routed_cases import Operands, operands

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RANKS = {"equal": [8] * 6, "ragged": [8, 64, 0, 8, 24], "unpadded": [3, 1, 17, 5]}


def case_of(ranks: str, T: int, dtype: torch.dtype) -> tuple[Operands, Slots]:
    case = operands(RANKS[ranks], T=T, h=32, D=48, dtype=dtype)
    layout = layout_of(case.offsets, case.scaling)
    return case, Slots(layout, Routing(case.selection, case.weights))


def served(names: Iterable[str]) -> list[tuple[str, str, torch.dtype]]:
    """Return every formulation with the ranks and dtypes that the model may give it."""
    cases = itertools.product(names, RANKS, DTYPES)
    return [(name, ranks, dtype) for name, ranks, dtype in cases if cpu_cost.serves(name, dtype)]


@pytest.mark.parametrize(("name", "ranks", "dtype"), served(CPU_SHRINKS))
@pytest.mark.parametrize("T", [1, 7, 90])
def test_shrink_is_each_slots_product(name: str, T: int, ranks: str, dtype: torch.dtype) -> None:
    case, slots = case_of(ranks, T, dtype)
    z = CPU_SHRINKS[name](case.x, case.A, slots)
    of_all = case.x.double() @ case.A.double().T
    expected = [
        of_all[t, case.offsets[i] : case.offsets[i + 1]]
        for t, token in enumerate(case.selection.tolist())
        for i in token
    ]
    assert z.dtype == torch.float32
    assert relative_error(z, torch.cat(expected)) <= TOLERANCES[dtype]


@pytest.mark.parametrize(("name", "ranks", "dtype"), served(CPU_EXPANDS))
@pytest.mark.parametrize("T", [1, 7, 90])
@pytest.mark.parametrize("in_place", [False, True], ids=["new", "in-place"])
def test_expand_is_the_sum_of_the_slots(
    name: str, in_place: bool, T: int, ranks: str, dtype: torch.dtype
) -> None:
    case, slots = case_of(ranks, T, dtype)
    z = slots.weighted(CPU_SHRINKS["grouped"](case.x, case.A, slots))
    base = torch.randn(T, 48).to(dtype) if in_place else None
    start = torch.zeros(T, 48) if base is None else base.clone()
    out = CPU_EXPANDS[name](z, case.Bt, slots, base)
    assert out.dtype == dtype
    assert base is None or out is base
    assert relative_error(out, start.double() + case.reference()) <= TOLERANCES[dtype]


@pytest.mark.parametrize("ranks", RANKS)
def test_row_form_and_compact_form_are_one_another(ranks: str) -> None:
    _, slots = case_of(ranks, 9, torch.float32)
    z = torch.randn(slots.rows.numel())
    compact = slots.compact(z)
    assert compact.shape == (9, 2, slots.layout.max_rank)
    assert torch.equal(slots.row_form(compact), z)
    assert compact.abs().sum() == pytest.approx(z.abs().sum())


@pytest.mark.parametrize("ranks", RANKS)
def test_sorting_by_adapter_is_undone(ranks: str) -> None:
    _, slots = case_of(ranks, 9, torch.float32)
    z = slots.rows.float()
    sorted_z = slots.by_adapter(z)
    assert torch.equal(slots.by_slot(sorted_z), z)
    adapters = torch.bucketize(sorted_z, torch.tensor(slots.layout.offsets[1:]), right=True)
    assert torch.equal(adapters, adapters.sort().values)


@pytest.mark.parametrize("selected", [-1, 3], ids=["negative", "unknown"])
@pytest.mark.parametrize("T", [3, 90])
def test_sampled_rows_outside_the_storage_are_never_read(T: int, selected: int) -> None:
    slots = slots_of([8] * 3, torch.full((T, 1), selected))
    with pytest.raises(ValueError, match=f"`selection` names adapter {selected}, expected 0 to 2"):
        CPU_SHRINKS["sampled"](torch.zeros(T, 32), torch.zeros(24, 32), slots)


def slots_of(ranks: list[int], selection: torch.Tensor) -> Slots:
    offsets = [0, *itertools.accumulate(ranks)]
    routing = Routing(selection, torch.ones(selection.shape))
    return Slots(layout_of(offsets, [1.0] * len(ranks)), routing)


def work_of(slots: Slots) -> cpu_cost.Work:
    T, k = slots.selection.shape
    return cpu_cost.work_of(slots.layout, T, k, slots.usage, 4096, torch.float32)


@pytest.mark.parametrize(
    ("leading", "top_k", "expected"),
    [((8,), 1, True), ((9,), 1, False), ((4, 1), 2, True), ((5, 1), 2, False), ((0,), 2, False)],
)
def test_a_handful_is_at_most_eight_slots_and_one_token(
    leading: tuple[int, ...], top_k: int, expected: bool
) -> None:
    assert cpu_cost.is_a_handful(torch.empty(*leading, 16), top_k) is expected


def test_model_reads_rows_where_they_lie_while_they_are_few() -> None:
    slots = slots_of([8] * 28, torch.arange(32).view(16, 2) % 28)
    assert cpu_cost.cheapest(slots, 4096, 4096, torch.float32) == ("sampled", "bag")


def test_model_multiplies_by_groups_when_ranks_are_large_and_tokens_many() -> None:
    slots = slots_of([64] * 28, torch.arange(1024).view(512, 2) % 28)
    assert cpu_cost.cheapest(slots, 4096, 4096, torch.float32) == ("grouped", "grouped")


def test_model_takes_all_adapters_when_they_are_few_and_tokens_many() -> None:
    slots = slots_of([8] * 4, torch.arange(8192).view(4096, 2) % 4)
    assert cpu_cost.cheapest(slots, 4096, 4096, torch.float32) == ("dense", "dense")


@pytest.mark.parametrize("formulas", [cpu_cost.FP32_SHRINK, cpu_cost.BF16_EXPAND], ids=["shrink", "expand"])
def test_a_rare_large_rank_is_not_paid_by_the_others(formulas: dict[str, cpu_cost.Constants]) -> None:
    selection = torch.arange(512).remainder(27).unsqueeze(1)
    even, ragged = (work_of(slots_of([8] * 27 + [last], selection)) for last in (8, 64))
    for name in formulas:
        if name != "dense":
            costs = {cpu_cost.FORMULAS[name](formulas[name], work, 1.0) for work in (even, ragged)}
            assert len(costs) == 1, name


@pytest.mark.parametrize("T", [1, 16, 512])
def test_fp16_is_only_served_where_it_is_widened(T: int) -> None:
    slots = slots_of([8] * 28, torch.arange(T).remainder(28).unsqueeze(1))
    assert cpu_cost.cheapest(slots, 4096, 4096, torch.float16) == ("grouped", "grouped")


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("T", [1, 90])
@pytest.mark.parametrize("in_place", [False, True], ids=["new", "in-place"])
def test_masked_products_are_the_sum_of_the_slots(in_place: bool, T: int, ranks: str) -> None:
    case, slots = case_of(ranks, T, torch.float32)
    # One token selects an adapter twice.
    case.selection[0, 1] = case.selection[0, 0]
    base = torch.randn(T, 48)
    out = base.clone() if in_place else None
    routing = Routing(case.selection, case.weights)
    found = routed_masked(case.x, case.A, case.Bt, slots.layout, routing, out)
    expected = case.reference() + (base.double() if in_place else 0)
    assert relative_error(found, expected) <= TOLERANCES[torch.float32]
    assert out is None or found is out


def test_masked_products_keep_an_overflow_with_its_own_tokens() -> None:
    case, slots = case_of("equal", 4, torch.float32)
    case.selection[:] = torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3]])
    case.A[0, 0] = 3e38
    case.x[:, 0] = 1e2
    routing = Routing(case.selection, case.weights)
    out = routed_masked(case.x, case.A, case.Bt, slots.layout, routing, None)
    assert out.isfinite().all(dim=1).tolist() == [False, True, False, True]


@pytest.mark.parametrize("named", [-1, 6])
def test_masked_products_refuse_an_adapter_that_does_not_exist(named: int) -> None:
    case, slots = case_of("equal", 4, torch.float32)
    case.selection[2, 1] = named
    with pytest.raises(ValueError, match=f"`selection` names adapter {named}, expected 0 to 5"):
        routed_masked(case.x, case.A, case.Bt, slots.layout, Routing(case.selection, case.weights), None)


@pytest.mark.parametrize(
    ("ranks", "top_k", "dtype", "masked"),
    [
        ([8] * 8, 2, torch.float32, True),
        ([8] * 9, 2, torch.float32, False),
        ([32] * 8, 2, torch.float32, False),
        ([8] * 8, 2, torch.bfloat16, False),
    ],
)
def test_few_adapters_are_all_multiplied(
    ranks: list[int], top_k: int, dtype: torch.dtype, masked: bool
) -> None:
    layout = layout_of([0, *itertools.accumulate(ranks)], [1.0] * len(ranks))
    routing = FixedRouting((0,) * top_k, (0.5,) * top_k).for_tokens((90,), "cpu")
    assert cpu_cost.are_few_adapters(layout, routing, dtype) is masked
