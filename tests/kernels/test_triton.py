"""The Triton kernels, in a process of their own: the interpreter is chosen before triton is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from support import warm

CASES = Path(__file__).with_name("triton_cases.py")


def test_kernels_agree_with_the_reference() -> None:
    pytest.importorskip("triton")
    pytest.importorskip("numpy", reason="Triton's interpreter computes with numpy")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-q",
        "-W",
        "error",
        "-W",
        # The process has imported what pytest would have liked to rewrite.
        "ignore::pytest.PytestAssertRewriteWarning",
        "-c",
        os.devnull,
        "-p",
        "no:cacheprovider",
    ]
    run = warm.run([*command, str(CASES)], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
