"""The program, and its entry point within the test's own process, which spares importing torch each time."""

from __future__ import annotations

import subprocess
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from meteora_registry.registry.cli import main

# The installed script, in the environment that runs the tests.
PROGRAM = Path(sysconfig.get_path("scripts")) / "meteora-registry"
Run = Callable[..., subprocess.CompletedProcess[str]]


def run_here(capture: pytest.CaptureFixture[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command with these arguments; return its output and exit code."""
    capture.readouterr()
    code = main.run([*map(str, arguments)])
    printed = capture.readouterr()
    return subprocess.CompletedProcess(arguments, code, printed.out, printed.err)


def make_fitted(run: Run, members: Sequence[str]) -> None:
    """Add the adapters of the folder, fuse them into ``bundle``, and fit its gates into ``fitted``."""
    assert run("add", *(f"adapters/{name}" for name in members)).returncode == 0
    assert run("fuse", *members, "--out", "bundle").returncode == 0
    fit = run("gate", "fit", "bundle", "--base", "./base", "--data", "./data", "--out", "fitted")
    assert fit.returncode == 0, fit.stderr
