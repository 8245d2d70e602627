"""`run_triton`: what a verifier calls, and the messages it exchanges with the interpreter's process."""

from __future__ import annotations

import subprocess

import pytest
import torch

from meteora_registry.kernels import triton_check
from meteora_registry.kernels.reference import TOLERANCES, relative_error
from meteora_registry.kernels.triton_check import (
    TritonRunError,
    TritonUnavailableError,
    decode,
    encode,
    run_triton,
)
from support.routed_cases import operands

pytest.importorskip("triton")
pytest.importorskip("numpy", reason="Triton's interpreter computes with numpy")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_triton_runs_here_and_agrees_with_the_reference(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Elsewhere the tests fork a warm process.
    monkeypatch.setattr(triton_check, "subprocess", subprocess)
    case = operands([8, 0, 64, 8], leading=(2, 3), h=40, D=24, dtype=dtype)
    run = run_triton(**vars(case))
    assert run.device == (torch.cuda.get_device_name() if torch.cuda.is_available() else "interpreter")
    assert run.output.shape == (2, 3, 24)
    assert relative_error(run.output, case.reference()) <= TOLERANCES[dtype]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU needs no process")
def test_a_process_that_takes_too_long_is_an_error() -> None:
    with pytest.raises(TritonRunError, match=r"^the interpreter was still running after 0\.01 seconds$"):
        run_triton(**vars(operands([8, 8])), timeout_seconds=0.01)


def test_operands_are_checked_before_a_process_is_started() -> None:
    case = operands([8, 8])
    case.selection[0, 0] = 7
    with pytest.raises(ValueError, match=r"^`selection` names adapter 7, expected 0 to 1"):
        run_triton(**vars(case))


def test_float64_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        run_triton(**vars(operands([8, 8], dtype=torch.float64)))
    assert str(caught.value) == (
        "`x` is torch.float64, expected one of torch.float32, torch.bfloat16, torch.float16; the Triton "
        "kernels have no other"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64], ids=str)
def test_messages_keep_every_bit(dtype: torch.dtype) -> None:
    sent = {"some": torch.randn(3, 5).mul(100).to(dtype), "none": torch.empty(0, 4, dtype=dtype)}
    tensors, values = decode(encode(sent, {"scaling": [0.1, 1e300]}))
    assert values == {"scaling": [0.1, 1e300]}
    for name, tensor in sent.items():
        assert tensors[name].dtype == dtype
        assert torch.equal(tensors[name], tensor)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda sent: sent[:-1], "the message ends within `a`, expected 24 bytes, found 23"),
        (lambda sent: sent + b"x", "the message has 25 bytes of tensors, expected 24"),
        (lambda sent: b"no header", "the message has no header line of at most 1048576 bytes"),
    ],
    ids=["short", "long", "headless"],
)
def test_damaged_messages_are_refused(damage: object, message: str) -> None:
    sent = encode({"a": torch.zeros(2, 3)}, {})
    with pytest.raises(ValueError) as caught:
        decode(damage(sent))
    assert str(caught.value) == message


@pytest.mark.parametrize(("triton", "numpy"), [("3.6.0", "2.4.0"), ("3.6.1", "2.5rc1"), ("3.6+git1", "3.0")])
def test_versions_that_do_not_work_together_are_named(triton: str, numpy: str) -> None:
    with pytest.raises(TritonUnavailableError) as caught:
        triton_check._check_versions(triton, numpy)
    assert str(caught.value) == (
        f"triton {triton} computes nothing without a GPU beside numpy {numpy}, expected triton 3.7 or newer, "
        "or numpy older than 2.4"
    )


@pytest.mark.parametrize(("triton", "numpy"), [("3.6.0", "2.3.5"), ("3.7.0", "2.4.0"), ("4.0", "2.10")])
def test_versions_that_work_together_are_taken(triton: str, numpy: str) -> None:
    triton_check._check_versions(triton, numpy)
