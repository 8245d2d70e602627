"""The guide for pull requests: every step, in order, in a repository that begins empty."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from support import warm
from support.ci_jobs import ACTION, ROOT
from support.program import PROGRAM
from support.small_adapters import make_adapter

PAGE = (ROOT / "docs" / "ci.md").read_text()
TEMPLATE = ROOT / "examples" / "adapter-repository"
CARD = "---\nlicense: mit\n---\n"
_BLOCK = re.compile(
    r"^## (?P<title>[^\n]+)\n(?:(?!^## ).)*?<!-- step -->\n```sh\n(?P<lines>.*?)```", re.M | re.S
)
_EXPECTED = re.compile(r"#.*exit code (\d)")


def run_line(line: str, folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a line of a step: in bash, unless it is the program and its words alone."""
    if line.startswith("meteora-registry ") and not set("|&;<>$`*") & set(line.partition("#")[0]):
        words = [PROGRAM, *shlex.split(line, comments=True)[1:]]
        return warm.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_steps_do_what_the_page_states(tmp_path: Path) -> None:
    for seed, name in enumerate(("legal", "medical", "summarise"), start=1):
        make_adapter(tmp_path / name, seed=seed, card=CARD)
    make_adapter(tmp_path / "old", seed=5, card=CARD, lora_alpha=0)
    make_adapter(tmp_path / "broken", seed=6, card=CARD, lora_alpha="x")
    make_adapter(tmp_path / "elsewhere", seed=7, card=CARD, base="org/elsewhere")
    place = tmp_path / "team"
    place.mkdir()
    environment = {
        "PATH": f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "METEORA": str(ROOT),
        "METEORA_HOME": str(tmp_path / "home"),
        "GIT_CONFIG_COUNT": "3",
        # git-lfs need not be installed for the steps.
        **{"GIT_CONFIG_KEY_0": "filter.lfs.process", "GIT_CONFIG_VALUE_0": ""},
        **{"GIT_CONFIG_KEY_1": "user.name", "GIT_CONFIG_VALUE_1": "tester"},
        **{"GIT_CONFIG_KEY_2": "user.email", "GIT_CONFIG_VALUE_2": "tester@localhost"},
    }
    blocks = _BLOCK.findall(PAGE)
    assert [title.partition(".")[0] for title, _ in blocks] == list("123456789")
    for title, lines in blocks:
        for line in lines.splitlines():
            expected = int(found[1]) if (found := _EXPECTED.search(line)) else 0
            done = run_line(line, place, environment)
            assert done.returncode == expected, f"{title}: {line}\n{done.stdout}{done.stderr}"
    assert not (place / "adapters" / "broken").exists()


def test_workflow_of_the_template_fits_the_action() -> None:
    workflow = yaml.safe_load((TEMPLATE / ".github" / "workflows" / "adapters.yml").read_text())
    checkout, check = workflow["jobs"]["validate"]["steps"]
    assert checkout["with"] | {"fetch-depth": 0, "persist-credentials": False} == checkout["with"]
    assert set(check["with"]) <= set(ACTION["inputs"])
    # YAML reads the key `on` as true.
    assert set(workflow[True]) == {"pull_request", "push"}
    assert workflow["permissions"] == {
        "contents": "read",
        "pull-requests": "write",
        "security-events": "write",
    }
    for name in ("policy", "baseline"):
        assert (TEMPLATE / check["with"][name]).is_file()


def test_policy_and_baseline_of_the_template_are_read(tmp_path: Path) -> None:
    place = shutil.copytree(TEMPLATE, tmp_path / "copy")
    make_adapter(place / "adapters" / "one", card=CARD)
    settings = ["--policy", "policy.toml", "--baseline", "known-findings.json"]
    done = warm.run([PROGRAM, "validate", "adapters", *settings], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hooks_of_the_template_are_a_valid_config() -> None:
    path = TEMPLATE / ".pre-commit-config.yaml"
    command = [sys.executable, "-m", "pre_commit", "validate-config", str(path)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    (repository,) = yaml.safe_load(path.read_text())["repos"]
    assert {each["id"] for each in repository["hooks"]} <= {each["id"] for each in hooks}


@pytest.mark.parametrize("name", ["templates/gitlab-ci.yml", "action.yml"])
def test_page_names_every_variable_of_a_job(name: str) -> None:
    variables = set(re.findall(r"METEORA_[A-Z_]+", (ROOT / name).read_text()))
    internal = {"METEORA_CI_PYTHON", "METEORA_CI_COMMENT", "METEORA_CI_COMMENT_AUTHOR", "METEORA_CI_DOCS_URL"}
    assert [each for each in sorted(variables - internal) if each not in PAGE] == []
