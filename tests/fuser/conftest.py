from __future__ import annotations

from pathlib import Path

import pytest

from meteora_registry.fuser.fuse_member import Member
from support.members import fuse, read_members


@pytest.fixture(scope="session")
def members(adapters: dict[str, Path]) -> list[Member]:
    return read_members(adapters)


@pytest.fixture(scope="session")
def fused(members: list[Member], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of all of them; read only, copy it before changing it."""
    return fuse(members, tmp_path_factory.mktemp("bundles") / "bundle", top_k=2)
