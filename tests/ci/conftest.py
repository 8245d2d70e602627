from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.ci_jobs import Runner, runner
from support.github_api import Api, serve_github
from support.repositories import GitRepository
from support.small_adapters import make_adapter


@pytest.fixture
def api() -> Iterator[Api]:
    """GitHub's API, without comments."""
    with serve_github() as served:
        yield served


@pytest.fixture
def machine() -> Iterator[Runner]:
    """A runner's machine that has the checker installed."""
    with runner() as made:
        made.use_program_of_the_tests("meteora-registry")
        yield made


@pytest.fixture(scope="session")
def a_team(tmp_path_factory: pytest.TempPathFactory) -> GitRepository:
    """A repository with a policy, a lock, a baseline and adapters on main, and a branch for a change."""
    team = GitRepository(tmp_path_factory.mktemp("repositories") / "team")
    for seed, name in enumerate(("legal", "medical", "old"), start=1):
        make_adapter(team.folder / "adapters" / name, seed=seed, lora_alpha=8 if name != "old" else 0)
    (team.folder / "policy.toml").write_text('meteora_policy = 1\nallowed_bases = ["org/base"]\n')
    (team.folder / "known.json").write_text('{"meteora_baseline": 1}\n')
    (team.folder / "adapters.lock").write_text('{"meteora_lock": 1}\n')
    team.commit("a team's adapters")
    team.git("checkout", "--quiet", "-b", "feature")
    return team


@pytest.fixture
def team(a_team: GitRepository, tmp_path: Path) -> GitRepository:
    """A copy of it for a test to change."""
    return GitRepository.copied(a_team, tmp_path / "team")
