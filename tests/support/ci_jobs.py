"""Jobs of code hosts as their runners start them: a script in bash and the documented variables.

The account is one that owns nothing but the checkout and the runner's folder, and there is neither a HOME nor
a terminal. Most tests are about what the script starts in its last line: they carry that out within this
process, with the same variables and no others, which spares starting Python and importing everything.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import string
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from meteora_registry.registry.cli.main import run
from support.github_api import WRITER, Api
from support.patience import PATIENCE_SECONDS
from support.program import PROGRAM
from support.repositories import GitRepository, inside

ROOT = Path(__file__).resolve().parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
# The places of the action's steps that have a script.
INSTALL, CHECK = 0, 1
# No requirement is fetched: the tests' own environment has all of them.
NO_INDEX = {
    "PIP_NO_INDEX": "1",
    "PIP_NO_DEPS": "1",
    "PIP_NO_BUILD_ISOLATION": "0",
    "PIP_NO_CACHE_DIR": "1",
    "PYTHONPATH": sysconfig.get_path("purelib"),
}
_BASIC = {"PATH": os.environ["PATH"], "CI": "true", "NO_PROXY": "127.0.0.1"}
_USER = 23456
# The Python that runs the tests may be in a folder of root's, so the account may read everything.
_ORDINARY = ("--clear-groups", "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
_INPUT = re.compile(r"\$\{\{ inputs\.([a-z-]+) \}\}")
# What GitHub makes of the other expressions of the action.
_EXPRESSION = re.compile(r"\$\{\{ (.*?) \}\}")
_DOCS_URL = "https://github.com/OWNER/meteora-registry/blob/COMMIT/docs/rules.md"
_COMMAND = re.compile(r"::(?P<name>[a-z-]+)(?: (?P<properties>.*?))?::(?P<data>.*)")


@dataclass(frozen=True)
class Done:
    """A step that ended: its exit code, what it printed, and what it left for the runner."""

    code: int
    out: str
    err: str
    summary: str
    outputs: dict[str, str]

    @property
    def report(self) -> Any:
        """The JSON report that the step names as an output."""
        return json.loads(Path(self.outputs["report"]).read_text())

    @property
    def commands(self) -> list[tuple[str, str]]:
        """The commands that the runner finds in the log, by name with what they hold."""
        found: list[tuple[str, str]] = []
        token = None
        for line in [*self.out.splitlines(), *self.err.splitlines()]:
            if token is not None:
                token = None if line == f"::{token}::" else token
            elif matched := _COMMAND.match(line.strip()):
                token = matched["data"] if matched["name"] == "stop-commands" else None
                if token is None:
                    found.append((matched["name"], f"{matched['properties'] or ''} {matched['data']}"))
            elif "##[" in line:
                found.append(("old form", line))
        return found


class Runner:
    """A machine with a checkout in ``workspace``; what is in ``folder`` belongs to the job's account."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workspace, self.temporary = folder / "workspace", folder / "temporary"
        self.temporary.mkdir()

    def use_program_of_the_tests(self, place: str) -> None:
        """Put the installed program where a job expects the one that it installed."""
        target = self.temporary / place / "bin" / "meteora-registry"
        target.parent.mkdir(parents=True)
        target.symlink_to(PROGRAM)

    def run_script(
        self, script: str, environment: Mapping[str, str], *options: str, owns_checkout: bool = True
    ) -> Done:
        """Run a script as a runner does, in the checkout."""
        self._empty_files()
        (self.temporary / "script.sh").write_text(script)
        command = ["bash", "--noprofile", "--norc", *options, str(self.temporary / "script.sh")]
        if os.geteuid() == 0:
            for place, _, names in os.walk(self.folder if owns_checkout else self.temporary):
                for path in (place, *(f"{place}/{name}" for name in names)):
                    os.chown(path, _USER, _USER, follow_symlinks=False)
            command = ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", *_ORDINARY, *command]
        done = subprocess.run(
            command,
            cwd=self.workspace,
            env=_BASIC | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        return self._done(done.returncode, done.stdout, done.stderr)

    def run_last_line(self, script: str, environment: Mapping[str, str]) -> Done:
        """Carry out what a script starts in its last line, which is the checker, within this process."""
        self._empty_files()
        # Where there is no HOME, the settings of the account that runs the tests would be read.
        variables = _BASIC | {"XDG_CONFIG_HOME": str(self.temporary / "config")} | environment
        words = shlex.split(script.splitlines()[-1].removeprefix("exec "))
        program, *arguments = (string.Template(word).substitute(variables) for word in words)
        assert Path(program).name == "meteora-registry"
        out, err = io.StringIO(), io.StringIO()
        with (
            patch.dict(os.environ, variables, clear=True),
            inside(self.workspace),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            code = run(arguments)
        return self._done(code, out.getvalue(), err.getvalue())

    def _empty_files(self) -> None:
        for name in ("summary", "outputs"):
            (self.temporary / name).write_text("")

    def _done(self, code: int, out: str, err: str) -> Done:
        summary, outputs = ((self.temporary / name).read_text() for name in ("summary", "outputs"))
        return Done(code, out, err, summary, dict(line.split("=", 1) for line in outputs.splitlines()))

    def run_step(
        self, index: int, environment: Mapping[str, str], *, owns_checkout: bool = True, **inputs: str
    ) -> Done:
        """Run one step of the action that has a script; inputs are written with ``_`` for ``-``."""
        script, variables = self._step(index, inputs)
        return self.run_script(
            script, variables | environment, "-e", "-o", "pipefail", owns_checkout=owns_checkout
        )

    def check(self, environment: Mapping[str, str], **inputs: str) -> Done:
        """Carry out the step that checks within this process."""
        script, variables = self._step(CHECK, inputs)
        return self.run_last_line(script, variables | environment)

    def _step(self, index: int, inputs: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        step = ACTION["runs"]["steps"][index]
        given = {name.replace("_", "-"): value for name, value in inputs.items()}
        assert set(given) <= set(ACTION["inputs"])

        def fill(text: str) -> str:
            return _INPUT.sub(
                lambda found: given.get(found[1], ACTION["inputs"][found[1]].get("default", "")), text
            )

        own = {name: fill(value) for name, value in step["env"].items()}
        own = {name: _EXPRESSION.sub(lambda found: _value_of(found[1]), value) for name, value in own.items()}
        return step["run"], {**self.variables(), **own}

    def variables(self) -> dict[str, str]:
        """Return the documented variables of GitHub Actions that do not depend on the event."""
        return {
            "GITHUB_ACTIONS": "true",
            "GITHUB_ACTION_PATH": str(ROOT),
            "GITHUB_JOB": "adapters",
            "GITHUB_OUTPUT": str(self.temporary / "outputs"),
            "GITHUB_REPOSITORY": "org/adapters",
            "GITHUB_STEP_SUMMARY": str(self.temporary / "summary"),
            "GITHUB_WORKSPACE": str(self.workspace),
            "RUNNER_TEMP": str(self.temporary),
        }

    def event(self, name: str, value: Mapping[str, Any]) -> dict[str, str]:
        """Return the variables of an event, whose payload is written to a file."""
        path = self.temporary / "event.json"
        path.write_text(json.dumps({"sender": {"login": "someone"}, "repository": {"id": 1}, **value}))
        return {"GITHUB_EVENT_NAME": name, "GITHUB_EVENT_PATH": str(path)}

    def pull_request(self, team: GitRepository, *, api_url: str, depth: int | None = None) -> dict[str, str]:
        """Check out what a pull request of the branch ``feature`` is merged as; return its variables."""
        shutil.rmtree(self.workspace, ignore_errors=True)
        base = team.git("rev-parse", "main")
        team.git("checkout", "--quiet", "-B", "merge", "main")
        team.git("merge", "--quiet", "--no-ff", "--no-edit", "feature")
        team.git("checkout", "--quiet", "feature")
        shallow = [f"--depth={depth}"] if depth else []
        subprocess.run(
            [
                "git",
                "clone",
                "--quiet",
                "--branch=merge",
                *shallow,
                f"file://{team.folder}",
                str(self.workspace),
            ],
            check=True,
        )
        request = {"number": 7, "base": {"ref": "main", "sha": base}, "head": {"ref": "feature"}}
        return {**self.event("pull_request", {"pull_request": request}), "GITHUB_API_URL": api_url}


@contextmanager
def runner() -> Iterator[Runner]:
    """Yield a machine in a folder that every account may enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Runner(Path(name))


def check(machine: Runner, team: GitRepository, api: Api, *, token: str = WRITER, **inputs: str) -> Done:
    """Check what the branch ``feature`` changes, as a pull request."""
    return machine.check(machine.pull_request(team, api_url=api.url), token=token, **inputs)


def check_in_bash(machine: Runner, team: GitRepository, api: Api, **inputs: str) -> Done:
    """Check the same with the action's own script, in processes of an ordinary account."""
    return machine.run_step(CHECK, machine.pull_request(team, api_url=api.url), token=WRITER, **inputs)


def _value_of(expression: str) -> str:
    if expression == "github.token":
        return ""
    assert expression.startswith("github.action_repository && format(")
    return _DOCS_URL
