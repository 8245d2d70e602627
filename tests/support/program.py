"""The program's entry point within the test's own process, which spares the import of torch each time."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from meteora_registry.registry.cli import main

Run = Callable[..., subprocess.CompletedProcess[str]]


def run_here(capture: pytest.CaptureFixture[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """What a command of these arguments prints, and its exit code."""
    capture.readouterr()
    code = main.run([*map(str, arguments)])
    printed = capture.readouterr()
    return subprocess.CompletedProcess(arguments, code, printed.out, printed.err)
