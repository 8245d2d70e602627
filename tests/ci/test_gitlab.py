"""The template for GitLab: its scripts as a runner starts them, and the reports of a merge request."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from xml.etree import ElementTree

import pytest
import yaml

from meteora_registry.registry.ci.gitlab import JUNIT_FILE, QUALITY_FILE
from support.ci_jobs import NO_INDEX, ROOT, Done, Runner, runner
from support.program import PROGRAM
from support.repositories import GitRepository
from support.small_adapters import make_adapter

JOB = yaml.safe_load((ROOT / "templates" / "gitlab-ci.yml").read_text())["validate-adapters"]
FETCH = JOB["before_script"][-1]


def check(machine: Runner, team: GitRepository, *, before: Sequence[str] = (), **variables: str) -> Done:
    """Run the job of a merge request for main; without a script ``before``, the checker in this process."""
    team.git("checkout", "--quiet", "main")
    # git serves a repository to its owner alone.
    origin = machine.folder / "origin.git"
    shutil.rmtree(origin, ignore_errors=True)
    clone = ["git", "clone", "--quiet"]
    subprocess.run([*clone, "--bare", f"file://{team.folder}", str(origin)], check=True)
    subprocess.run(
        [*clone, "--single-branch", "--branch=feature", f"file://{origin}", str(machine.workspace)],
        check=True,
    )
    environment = {name: str(value) for name, value in JOB["variables"].items()} | {
        "CI_BUILDS_DIR": str(machine.temporary),
        "CI_MERGE_REQUEST_TARGET_BRANCH_NAME": "main",
        "GITLAB_CI": "true",
        **variables,
    }
    if before:
        return machine.run_script("\n".join([*before, *JOB["script"]]), environment, "-e")
    fetched = machine.run_script(FETCH, environment, "-e")
    assert fetched.code == 0, fetched.err
    return machine.run_last_line(JOB["script"][-1], environment)


def quality(machine: Runner) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((machine.workspace / QUALITY_FILE).read_text())
    return found


def test_merge_request_gets_both_reports(machine: Runner, team: GitRepository) -> None:
    make_adapter(team.folder / "adapters" / "new", seed=9, lora_alpha=0, base=None)
    make_adapter(team.folder / "adapters" / "good", seed=8)
    team.commit()
    done = check(machine, team, before=[FETCH])
    assert done.code == 1, done.err
    assert "; 3 unchanged" in done.out
    suites = ElementTree.parse(machine.workspace / JUNIT_FILE).getroot()
    assert len(suites.findall(".//failure")) >= 1
    found = quality(machine)
    (refused,) = [each for each in found if each["check_name"] == "MR112"]
    assert refused["severity"] == "critical"
    assert refused["location"] == {"path": "adapters/new/adapter_config.json", "lines": {"begin": 1}}
    assert {each["severity"] for each in found} <= {"info", "minor", "critical", "blocker"}
    assert len({each["fingerprint"] for each in found}) == len(found) > 1
    artifacts = JOB["artifacts"]["reports"]
    assert artifacts == {"junit": JUNIT_FILE, "codequality": QUALITY_FILE}


def test_fingerprints_stay_the_same_from_run_to_run(machine: Runner, team: GitRepository) -> None:
    make_adapter(team.folder / "adapters" / "new", seed=9, lora_alpha=0)
    team.commit()
    check(machine, team)
    first = quality(machine)
    shutil.rmtree(machine.workspace)
    team.git("checkout", "--quiet", "feature")
    make_adapter(team.folder / "adapters" / "another", seed=7, lora_alpha=0)
    team.commit()
    check(machine, team)
    kept = {each["fingerprint"] for each in first}
    assert kept < {each["fingerprint"] for each in quality(machine)}


def test_merge_request_that_lets_its_own_adapter_through_is_refused(
    machine: Runner, team: GitRepository
) -> None:
    make_adapter(team.folder / "adapters" / "hostile", seed=9, base="evil/base")
    (team.folder / "policy.toml").write_text('meteora_policy = 1\nallowed_bases = ["evil/base"]\n')
    team.commit()
    done = check(machine, team, METEORA_CI_POLICY="policy.toml")
    assert done.code == 1, done.err
    assert "MR701" in [each["check_name"] for each in quality(machine)]


def test_policy_is_that_of_the_target_today_and_not_where_the_branch_began(
    machine: Runner, team: GitRepository
) -> None:
    make_adapter(team.folder / "adapters" / "new", seed=9)
    team.commit()
    team.git("checkout", "--quiet", "main")
    (team.folder / "policy.toml").write_text('meteora_policy = 1\nallowed_bases = ["org/newer"]\n')
    team.commit()
    done = check(machine, team, METEORA_CI_POLICY="policy.toml")
    assert done.code == 1, done.err
    assert "MR701" in [each["check_name"] for each in quality(machine)]


def test_adapter_that_cannot_be_read_is_a_blocker(machine: Runner, team: GitRepository) -> None:
    folder = make_adapter(team.folder / "adapters" / "linked", seed=9)
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").symlink_to("/etc/hostname")
    team.commit()
    assert check(machine, team).code == 2
    assert [each["severity"] for each in quality(machine) if each["check_name"] == "unreadable"] == [
        "blocker"
    ]


@pytest.mark.parametrize(
    ("before", "code"),
    [("feature~1", 0), ("0" * 40, 1), ("f" * 40, 1)],
    ids=["push", "new branch", "force push"],
)
def test_push_counts_changes_from_what_was_there_before(
    machine: Runner, team: GitRepository, before: str, code: int
) -> None:
    make_adapter(team.folder / "adapters" / "new", seed=9)
    team.commit()
    commit = team.git("rev-parse", before) if "~" in before else before
    done = check(machine, team, CI_MERGE_REQUEST_TARGET_BRANCH_NAME="", CI_COMMIT_BEFORE_SHA=commit)
    # Only where all adapters are checked, the broken one of the team is among them.
    assert done.code == code, done.err
    assert ("; 3 unchanged" in done.out) == (code == 0)


def test_job_elsewhere_is_refused_in_words(machine: Runner, team: GitRepository) -> None:
    done = check(machine, team, GITLAB_CI="", CI_MERGE_REQUEST_TARGET_BRANCH_NAME="")
    assert done.code == 2
    assert "this is not a job of GitLab CI" in done.err


@pytest.mark.slow
def test_whole_job_installs_the_checker_and_checks(team: GitRepository) -> None:
    make_adapter(team.folder / "adapters" / "new", seed=9, lora_alpha=0)
    team.commit()
    own = {"METEORA_REGISTRY_SOURCE": str(ROOT), "PATH": f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}"}
    with runner() as machine:
        done = check(machine, team, before=JOB["before_script"], **NO_INDEX, **own)
        assert done.code == 1, done.err
        assert [each["check_name"] for each in quality(machine) if each["severity"] == "critical"] == [
            "MR112"
        ]
        shutil.rmtree(machine.workspace)
        done = check(
            machine, team, before=JOB["before_script"], **NO_INDEX, **own | {"METEORA_REGISTRY_SOURCE": ""}
        )
        assert done.code != 0
        assert "the variable METEORA_REGISTRY_SOURCE is not set" in done.err
