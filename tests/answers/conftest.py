"""The bundle that the tests of one worker talk to."""

from __future__ import annotations

import pytest

from support.conversations import Place, make_place


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A fitted bundle with its base; read only."""
    return make_place(tmp_path_factory.mktemp("answers"))
