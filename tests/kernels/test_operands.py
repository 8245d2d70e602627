"""The door: each operand that does not fit is named, with what was expected and the way out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from meteora_registry.kernels.layout import layout_of
from meteora_registry.kernels.routed_lora import routed_lora_
from support.routed_cases import Operands, operands


def replaced(**changes: Callable[[Operands], object]) -> Operands:
    case = operands([8, 0, 8], T=5, h=16, D=24, k=2)
    for name, change in changes.items():
        setattr(case, name, change(case))
    return case


REFUSALS = {
    "x-dtype": (
        {"x": lambda c: c.x.long()},
        "`x` is torch.int64, expected one of torch.float32, torch.bfloat16, torch.float16, torch.float64",
    ),
    "mixed-dtypes": (
        {"A": lambda c: c.A.bfloat16()},
        "`x`, `A` and `Bt` are torch.float32, torch.bfloat16 and torch.float32, expected one dtype; "
        "cast `x` to the factors' dtype before the call",
    ),
    "selection-dtype": (
        {"selection": lambda c: c.selection.int()},
        "`selection` is torch.int32, expected torch.int64",
    ),
    "weights-dtype": (
        {"weights": lambda c: c.weights.bfloat16()},
        "`weights` is torch.bfloat16, expected torch.float32; keep routing out of autocast",
    ),
    "meta-device": (
        {"A": lambda c: c.A.to("meta")},
        "`A` is on meta and `x` on cpu, expected one device",
    ),
    "dimensions": (
        {"A": lambda c: c.A.view(2, 8, 16)},
        "`x`, `A` and `Bt` are [5, 16], [2, 8, 16] and [16, 24], expected [..., h], [N, h] and [N, D]",
    ),
    "columns": (
        {"A": lambda c: c.A[:, :8].contiguous()},
        "`A` has 8 columns, expected 16, the last dimension of `x`",
    ),
    "rows": (
        {"Bt": lambda c: c.Bt.T.contiguous()},
        "`Bt` has 24 rows, expected 16, where the last of `offsets` ends; Bt is B transposed",
    ),
    "strided": (
        {"A": lambda c: torch.zeros(16, 16).T},
        "`A` or `Bt` is a strided view, expected contiguous rows; call `.contiguous()` once",
    ),
    "routing-shapes": (
        {"weights": lambda c: c.weights[:, :1]},
        "`selection` is [5, 2] and `weights` [5, 1], expected one shape",
    ),
    "routing-for-other-tokens": (
        {"selection": lambda c: c.selection[:4], "weights": lambda c: c.weights[:4]},
        "`selection` is [4, 2] for `x` [5, 16], expected [5, 'k']: k adapters for each token",
    ),
    "more-slots-than-adapters": (
        {"selection": lambda c: c.selection.repeat(1, 2), "weights": lambda c: c.weights.repeat(1, 2)},
        "`selection` names 4 adapters per token, expected 1 to 3, the adapters known here",
    ),
    "no-adapters": (
        {"offsets": lambda c: [0], "scaling": lambda c: []},
        "`scaling` is empty, expected one float per adapter and at least one adapter",
    ),
    "offsets-length": (
        {"offsets": lambda c: [0, 16]},
        "`offsets` has 2 entries for 3 adapters, expected 4: where each adapter's rows start, then where "
        "the last ends",
    ),
    "offsets-start": ({"offsets": lambda c: [8, 8, 8, 16]}, "`offsets` starts at 8, expected 0"),
    "offsets-fall": (
        {"offsets": lambda c: [0, 8, 4, 16]},
        "`offsets` falls from 8 to 4 at adapter 1, expected offsets that never fall; an adapter that is "
        "absent repeats its start",
    ),
    "scaling": (
        {"scaling": lambda c: [1.0, float("nan"), 1.0]},
        "`scaling` of adapter 1 is nan, expected a finite number",
    ),
    "unknown-adapter": (
        {"selection": lambda c: c.selection * 0 + 4},
        "`selection` names adapter 4, expected 0 to 2, the adapters known here",
    ),
    "negative-adapter": (
        {"selection": lambda c: c.selection * 0 - 1},
        "`selection` names adapter -1, expected 0 to 2, the adapters known here",
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_operands_that_do_not_fit_are_refused(refusal: str) -> None:
    changes, message = REFUSALS[refusal]
    with pytest.raises(ValueError) as caught:
        replaced(**changes).routed()
    assert str(caught.value) == message


OUTPUT_REFUSALS = {
    "shape": (lambda: torch.zeros(5, 23), "`out` is [5, 23], expected [5, 24]"),
    "dtype": (
        lambda: torch.zeros(5, 24, dtype=torch.bfloat16),
        "`out` is torch.bfloat16 for `x` torch.float32, expected one dtype; cast `x` first",
    ),
    "device": (
        lambda: torch.zeros(5, 24, device="meta"),
        "`out` is on meta and `x` on cpu, expected one device",
    ),
}


@pytest.mark.parametrize("refusal", OUTPUT_REFUSALS)
def test_output_that_does_not_fit_is_refused(refusal: str) -> None:
    make, message = OUTPUT_REFUSALS[refusal]
    with pytest.raises(ValueError) as caught:
        routed_lora_(make(), **vars(replaced()))
    assert str(caught.value) == message


def test_output_that_no_view_flattens_is_refused() -> None:
    case = operands([8, 8], leading=(2, 3))
    with pytest.raises(ValueError) as caught:
        routed_lora_(torch.zeros(3, 2, 24).transpose(0, 1), **vars(case))
    assert str(caught.value) == (
        "`out` [2, 3, 24] has strides [24, 48, 1], expected leading dimensions that flatten without a copy; "
        "pass a contiguous `out`"
    )


@pytest.mark.parametrize("name", ["out", "x", "A", "Bt", "weights"])
def test_adding_in_place_refuses_to_lose_a_gradient(name: str) -> None:
    case, out = replaced(), torch.zeros(5, 24)
    (out if name == "out" else getattr(case, name)).requires_grad_()
    with pytest.raises(RuntimeError) as caught:
        routed_lora_(out, **vars(case))
    assert str(caught.value) == (
        "`routed_lora_` writes into its output and passes no gradient, but gradients are enabled and an "
        "operand requires them; use `routed_lora`, or call under `torch.no_grad()`"
    )


def test_a_layout_is_checked_once_and_remembered() -> None:
    case = replaced()
    assert layout_of(case.offsets, case.scaling) is layout_of(list(case.offsets), tuple(case.scaling))
