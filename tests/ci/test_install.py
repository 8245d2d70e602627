"""The action installs the checker from its own checkout, as an account without a home, and it checks."""

from __future__ import annotations

import sys

import pytest

from support.ci_jobs import CHECK, INSTALL, NO_INDEX, ROOT, runner
from support.github_api import WRITER, Api
from support.repositories import GitRepository
from support.small_adapters import make_adapter


@pytest.mark.slow
def test_checker_is_installed_from_the_checkout_and_checks(team: GitRepository, api: Api) -> None:
    make_adapter(team.folder / "adapters" / "new", seed=9, lora_alpha=0)
    team.commit()
    with runner() as machine:
        event = machine.pull_request(team, api_url=api.url)
        done = machine.run_step(INSTALL, NO_INDEX, python=sys.executable)
        assert done.code == 0, done.err + done.out
        place = machine.temporary / "meteora-registry"
        (package,) = place.glob("lib/*/site-packages/meteora_registry")
        assert not package.is_symlink()
        assert (package / "registry" / "ci" / "github.py").is_file()
        assert not list(ROOT.glob("build")), "the action's checkout is only read"
        done = machine.run_step(CHECK, event | {"PYTHONPATH": NO_INDEX["PYTHONPATH"]}, token=WRITER)
        assert done.code == 1, done.err
        assert "MR112" in done.summary
        assert len(api.bodies()) == 1


def test_python_that_is_too_old_or_missing_is_refused_in_words() -> None:
    with runner() as machine:
        machine.workspace.mkdir()
        old = machine.temporary / "old-python"
        old.write_text("#!/bin/sh\nexit 1\n")
        old.chmod(0o755)
        for python in (str(old), "no-such-python"):
            done = machine.run_step(INSTALL, {}, python=python)
            assert done.code == 2
            assert done.out == "::error::the input python does not name a Python 3.11 or newer\n"
