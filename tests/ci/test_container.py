"""The container, built and run where a builder can do so: nothing else here shows that it works."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from support.ci_jobs import ROOT
from support.small_adapters import make_adapter


def builder() -> str | None:
    """Return a program that builds images here; a client without its service does not."""
    for name in ("podman", "docker"):
        if (
            shutil.which(name)
            and subprocess.run([name, "info"], capture_output=True, check=False).returncode == 0
        ):
            return name
    return None


def test_container_checks_a_mounted_folder(tmp_path: Path) -> None:
    program = builder()
    if program is None:
        pytest.skip("no program that builds containers works here (podman or docker)")
    built = subprocess.run(
        [program, "build", "--quiet", "--file", str(ROOT / "Containerfile"), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "pull" in built.stderr or "resolve" in built.stderr:
        pytest.skip("the image that the container starts from cannot be fetched here")
    assert built.returncode == 0, built.stderr
    make_adapter(tmp_path / "broken", lora_alpha=0)
    run = [program, "run", "--rm", "--network=none", "--volume", f"{tmp_path}:/work:ro", built.stdout.strip()]
    done = subprocess.run([*run, "validate", "."], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "MR112" in done.stdout


def test_container_file_installs_from_the_checkout_and_runs_as_no_one_in_particular() -> None:
    lines = (ROOT / "Containerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 65534:65534"]
    assert any(
        "pip install" in line and "--constraint /source/constraints.txt /source" in line for line in lines
    )
