"""The action, the hooks and the templates as files: valid, and safe by construction."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.ci_jobs import ACTION, ROOT

# The schemas that check-jsonschema brings along, so that nothing is fetched.
SCHEMAS = {
    "action.yml": "vendor.github-actions",
    "templates/gitlab-ci.yml": "vendor.gitlab-ci",
    **{
        path.relative_to(ROOT).as_posix(): "vendor.github-workflows"
        for path in sorted((ROOT / "examples").rglob(".github/workflows/*.yml"))
    },
}
WORKFLOWS = [ROOT / name for name in SCHEMAS]


def check_schema(schema: str, path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", SCHEMAS)
def test_file_is_valid_against_its_published_schema(name: str) -> None:
    done = check_schema(SCHEMAS[name], ROOT / name)
    assert done.returncode == 0, done.stdout + done.stderr


def test_schemas_refuse_what_is_not_valid(tmp_path: Path) -> None:
    wrong = tmp_path / "action.yml"
    wrong.write_text((ROOT / "action.yml").read_text().replace("using: composite", "using: cement"))
    assert check_schema(SCHEMAS["action.yml"], wrong).returncode == 1


def test_hooks_are_a_valid_manifest() -> None:
    command = [sys.executable, "-m", "pre_commit", "validate-manifest", str(ROOT / ".pre-commit-hooks.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def scripts(value: Any) -> Iterator[str]:
    """Yield every script of an action or a workflow."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name in ("run", "script", "before_script"):
                yield from [each] if isinstance(each, str) else each
            else:
                yield from scripts(each)
    elif isinstance(value, list):
        for each in value:
            yield from scripts(each)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_no_script_has_text_of_an_input_in_it(path: Path) -> None:
    found = list(scripts(yaml.safe_load(path.read_text())))
    assert [each for each in found if "${{" in each] == []
    assert path.name != "action.yml" or len(found) == 2


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_no_workflow_runs_with_the_rights_of_the_base(path: Path) -> None:
    value = yaml.safe_load(path.read_text())
    assert "pull_request_target" not in str(value)
    assert "workflow_run" not in str(value)


def test_every_input_is_passed_through_the_environment_once() -> None:
    given = [text for step in ACTION["runs"]["steps"] for text in step.get("env", {}).values()]
    named = [found for text in given for found in re.findall(r"\$\{\{ inputs\.([a-z-]+) \}\}", text)]
    # The upload is a step of GitHub's own, which is switched on or off.
    assert sorted(named) == sorted(set(ACTION["inputs"]) - {"upload-sarif"})


def test_page_names_every_input_and_variable() -> None:
    page = (ROOT / "docs" / "ci.md").read_text()
    table = page.partition("<!-- inputs:")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE) == list(ACTION["inputs"])
