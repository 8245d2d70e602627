"""Versions of triton and numpy that interpret the kernels: ``python -m benchmarks.run interpreter-versions``.

Each pair is installed into folders of their own, in front of the environment that runs this, and runs some of
the kernels' tests in Triton's interpreter: `clean` with every warning an error, `warns` without that, else
`fails`. It downloads some 200 MB for each triton. The bounds in pyproject.toml follow these rows.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.pages import Row, write_row

ROOT = Path(__file__).resolve().parents[1]
CASES = ROOT / "tests" / "kernels" / "triton_cases.py"
TRITON = ("3.6.0", "3.7.0", "3.7.1", "3.8.0", "3.9.0")
NUMPY = ("1.26.4", "2.0.2", "2.1.3", "2.2.6", "2.3.5", "2.4.0", "2.4.6")
SOME_TESTS = "one-token or ties"


def main(arguments: list[str]) -> None:
    """Try every pair and write one line of JSON for each."""
    program = "python -m benchmarks.run interpreter-versions"
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("--out", type=Path, help="append the rows to this file")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(Path(folder)):
            write_row(row, options.out)


def measure(folder: Path) -> Iterator[Row]:
    """Yield one row for each pair."""
    for triton, numpy in itertools.product(TRITON, NUMPY):
        paths = [installed(folder, "triton", triton), installed(folder, "numpy", numpy)]
        outcome, message = interpreted(paths)
        yield {
            "triton": triton,
            "numpy": numpy,
            "outcome": outcome,
            "message": message,
            "torch": importlib.metadata.version("torch"),
            "python": platform.python_version(),
        }


def installed(folder: Path, package: str, version: str) -> Path:
    """Return a folder with one version of a package and none of what it needs."""
    target = folder / f"{package}-{version}"
    if not target.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
        subprocess.run([*command, f"{package}=={version}"], check=True)
    return target


def interpreted(paths: list[Path]) -> tuple[str, str]:
    """Return how the tests ended with these folders in front, and the message of a failure."""
    search = os.pathsep.join(map(str, [*paths, ROOT / "src", ROOT / "tests"]))
    environment = os.environ | {"PYTHONPATH": search, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    message = ""
    for warnings, outcome in (("error", "clean"), ("default", "warns")):
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-W", warnings, "-c", os.devnull]
        command += ["-p", "no:cacheprovider", "-k", SOME_TESTS, str(CASES)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if run.returncode == 0:
            return outcome, message
        errors = [line[2:].strip() for line in run.stdout.splitlines() if line.startswith("E ")]
        message = errors[0] if errors else run.stdout.strip()[-200:]
    return "fails", message
