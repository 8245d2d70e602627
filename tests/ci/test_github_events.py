"""The check on GitHub under other events, environments and answers of the API, within this process."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler

import pytest

from support.ci_jobs import Runner
from support.github_api import WRITER, Api
from support.program import run_here
from support.repositories import GitRepository
from support.small_adapters import make_adapter

ALL = ["adapters/legal", "adapters/medical", "adapters/new", "adapters/old"]
Job = Callable[[dict[str, str]], subprocess.CompletedProcess[str]]


@pytest.fixture
def job(
    machine: Runner,
    team: GitRepository,
    api: Api,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Job:
    """The check of a pull request with a good adapter; it takes changes of the environment."""
    make_adapter(team.folder / "adapters" / "new", seed=9)
    team.commit()
    environment = machine.pull_request(team, api_url=api.url)
    monkeypatch.chdir(machine.workspace)
    monkeypatch.setenv("METEORA_HOME", str(machine.temporary / "home"))

    def run(changes: dict[str, str]) -> subprocess.CompletedProcess[str]:
        given = machine.variables() | environment | {"GITHUB_TOKEN": WRITER} | changes
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        return partial(run_here, capfd)("ci", "github")

    return run


def _fail(handler: BaseHTTPRequestHandler) -> None:
    handler.send_error(500)


def _redirect(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(302)
    handler.send_header("Location", "http://127.0.0.1:1/elsewhere")
    handler.end_headers()


def _not_json(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"<html>")


def _other_json(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b'[{"id": "x", "body": 3}]')


def _endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b" " * (1 << 20))
    except OSError:
        return


def _nothing(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.close()


@pytest.mark.parametrize("answer", [_fail, _redirect, _not_json, _other_json, _endless, _nothing])
def test_api_that_fails_does_not_change_the_answer(job: Job, api: Api, answer: object) -> None:
    api.answer = answer  # type: ignore[assignment]
    done = job({})
    assert done.returncode == 0, done.stderr
    assert "warning: the comment was not written: GitHub" in done.stderr
    assert "defect" not in done.stderr


@pytest.mark.parametrize(
    ("name", "payload", "checked"),
    [
        ("push", {"before": "main~1"}, ["adapters/new"]),
        ("push", {"before": "0" * 40}, ALL),
        ("push", {"before": "f" * 40}, ALL),
        ("schedule", {}, ALL),
        ("merge_group", {"merge_group": {"base_sha": "main~1"}}, ["adapters/new"]),
    ],
    ids=["push", "new branch", "force push", "schedule", "merge queue"],
)
def test_other_events_have_revisions_of_their_own(
    job: Job, machine: Runner, team: GitRepository, api: Api, name: str, payload: object, checked: list[str]
) -> None:
    text = json.dumps(payload).replace("main~1", team.git("rev-parse", "feature~1"))
    done = job(machine.event(name, json.loads(text)) | {"METEORA_CI_POLICY": "policy.toml"})
    assert done.returncode == int("adapters/old" in checked), done.stderr
    report = json.loads((machine.temporary / "meteora-registry.json").read_text())
    assert [each["name"] for each in report["adapters"]] == checked
    assert api.requests == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"GITHUB_EVENT_NAME": ""}, "this is not a job of GitHub Actions"),
        ({"GITHUB_EVENT_PATH": "/absent"}, "cannot be read"),
        ({"GITHUB_STEP_SUMMARY": "/absent/summary"}, "cannot be written"),
        ({"GITHUB_REPOSITORY": "../.."}, "is not a Hub repository"),
        ({"GITHUB_API_URL": "not an address"}, "the comment was not written"),
    ],
)
def test_environment_that_is_not_that_of_a_job_is_refused_in_words(
    job: Job, changes: dict[str, str], message: str
) -> None:
    done = job(changes)
    assert message in done.stderr
    assert "defect" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("setting", "name"), [("POLICY", "known.json"), ("BASELINE", "policy.toml"), ("LOCK", "policy.toml")]
)
def test_malformed_file_of_the_base_is_named_with_its_commit(job: Job, setting: str, name: str) -> None:
    done = job({f"METEORA_CI_{setting}": name})
    assert done.returncode == 1
    assert re.search(rf"error: `{re.escape(name)} of [0-9a-f]{{12}}` is not ", done.stderr), done.stderr
