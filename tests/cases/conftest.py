from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from support.program import Run, run_here


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command line within this process, in an empty folder with a home of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METEORA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("METEORA_CATALOG", raising=False)
    return partial(run_here, capfd)
