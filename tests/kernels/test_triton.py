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
    # Of the settings and plugins of all tests it needs none, and their imports would take half of its time.
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": str(CASES.parents[1]),
    }
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    plugins = ["-p", "support.triton_interpreter", "-p", "no:cacheprovider"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--noconftest",
        "-q",
        "-W",
        "error",
        "-c",
        os.devnull,
        *plugins,
    ]
    run = subprocess.run([*command, str(CASES)], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
