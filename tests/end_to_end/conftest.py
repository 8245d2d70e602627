from __future__ import annotations

from pathlib import Path

import pytest

from support.program import Run


@pytest.fixture
def run(run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in the module's workplace, with the home there."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("METEORA_HOME", str(workplace / "home"))
    return run
