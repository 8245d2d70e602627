from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from support.program import Run, run_here


@pytest.fixture
def run(workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The program within this process, in the module's workplace with a home of its own."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("METEORA_HOME", str(workplace / "home"))
    monkeypatch.delenv("METEORA_CATALOG", raising=False)
    return partial(run_here, capfd)
