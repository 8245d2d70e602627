from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.hub import LoopbackHub, serve
from support.hub_commands import Workplace, workplace


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """An empty Hub."""
    with serve() as hub:
        yield hub


@pytest.fixture
def here(hub: LoopbackHub, tmp_path: Path) -> Workplace:
    """An empty machine that knows the Hub and has a token that may write there."""
    return workplace(tmp_path / "here", hub)
