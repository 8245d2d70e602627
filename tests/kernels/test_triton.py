"""The Triton kernels, in a process of their own: the interpreter is chosen before triton is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CASES = Path(__file__).with_name("triton_cases.py")


def test_kernels_agree_with_the_reference() -> None:
    pytest.importorskip("triton")
    pytest.importorskip("numpy", reason="Triton's interpreter computes with numpy")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-W",
        "error",
        "-c",
        os.devnull,
        "-p",
        "no:cacheprovider",
    ]
    run = subprocess.run([*command, str(CASES)], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
