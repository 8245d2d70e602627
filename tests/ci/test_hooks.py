"""The hooks: the commands that they start, and run by pre-commit itself, without an index."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from support.ci_jobs import ROOT
from support.program import Run
from support.repositories import GitRepository
from support.small_adapters import make_adapter

HOOKS = {each["id"]: each for each in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())}


@pytest.mark.parametrize(("hook", "code"), [("validate-adapters", 0), ("validate-adapters-for-fuse", 1)])
def test_command_of_a_hook_works_out_the_folders_of_the_files_that_it_gets(
    run: Run, tmp_path: Path, hook: str, code: int
) -> None:
    make_adapter(tmp_path / "good", seed=1, bias="all")
    make_adapter(tmp_path / "broken", seed=2, lora_alpha=0)
    program, *words = shlex.split(HOOKS[hook]["entry"])
    assert program == "meteora-registry"
    names = ("adapter_config.json", "adapter_model.safetensors")
    files = [f"{folder}/{name}" for folder in ("good", "broken") for name in (*names, "README.md")]
    both = [name for name in files if re.search(HOOKS[hook]["files"], name)]
    assert both == [name for name in files if not name.endswith("README.md")]
    done = run(*words, *both[:2])
    assert done.returncode == code, done.stderr
    assert done.stdout.count("good: ") == 1
    done = run(*words, *both[1:3])
    assert done.returncode == 1
    assert "broken: refused" in done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables by which pre-commit keeps to a folder of its own, and pip to what is installed here."""
    return os.environ | {
        "PRE_COMMIT_HOME": str(tmp_path_factory.mktemp("pre-commit")),
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "VIRTUALENV_NO_DOWNLOAD": "1",
        "METEORA_HOME": str(tmp_path_factory.mktemp("home")),
        "GIT_CONFIG_GLOBAL": os.devnull,
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> GitRepository:
    """A repository with the working tree's files, which a hook is installed from."""
    made = GitRepository(tmp_path_factory.mktemp("source"))
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.split(b"\0")
    wanted = [os.fsdecode(name) for name in files if name and not name.startswith((b"tests/", b"docs/"))]
    subprocess.run(["cp", "--parents", "--no-dereference", *wanted, str(made.folder)], cwd=ROOT, check=True)
    made.commit("the hooks' source")
    return made


def run_hook(
    team: GitRepository, source: GitRepository, environment: dict[str, str], hook: str, *files: Path
) -> tuple[int, str]:
    """Return the exit code and the output of a hook on some files."""
    names = [str(path.relative_to(team.folder)) for path in files]
    command = [
        sys.executable,
        "-m",
        "pre_commit",
        "try-repo",
        str(source.folder),
        hook,
        "--verbose",
        "--files",
    ]
    done = subprocess.run(
        [*command, *names], cwd=team.folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_hook_works_out_the_folders_of_the_files_that_it_gets(
    tmp_path: Path, source: GitRepository, environment: dict[str, str]
) -> None:
    team = GitRepository(tmp_path / "team")
    good = make_adapter(team.folder / "good", seed=1, bias="all")
    broken = make_adapter(team.folder / "broken", seed=2, lora_alpha=0)
    (team.folder / "README.md").write_text("not of an adapter")
    team.commit()
    both = (good / "adapter_config.json", good / "adapter_model.safetensors")
    code, text = run_hook(team, source, environment, "validate-adapters", *both, team.folder / "README.md")
    assert code == 0, text
    assert text.count("good: accepted") == 1
    code, text = run_hook(
        team, source, environment, "validate-adapters", *both, broken / "adapter_config.json"
    )
    assert code == 1
    assert "broken: refused" in text
    code, text = run_hook(team, source, environment, "validate-adapters-for-fuse", *both)
    assert code == 1, text
    code, text = run_hook(team, source, environment, "validate-adapters", team.folder / "README.md")
    assert (code, "Skipped" in text) == (0, True)
