"""Installing what the tests need beside Python: only where no password is asked for, and never a failure."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "install_system_packages"
TOOLS = ("bash", "env", "mktemp", "rm", "tail")
PACKAGES = "chromium chromium-driver pgbouncer"
SKIPPED = [
    "warning: the tests that open pages in a browser (tests/tracing/test_page.py) are skipped",
    "warning: the tests that reach PostgreSQL through a pooler (pgbouncer in their names) are skipped",
]
ROOT, USER = "echo 0", "echo 1000"
PASSES = 'echo "$@" >>"$CALLS"; echo "much to read"'
ASKS = "exit 1"


def install(folder: Path, **programs: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run the script on a system that has these programs; also what it asked of apt-get."""
    for tool in TOOLS:
        (folder / tool).symlink_to(str(shutil.which(tool)))
    for name, body in programs.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!{shutil.which('bash')}\n{body}\n")
        path.chmod(0o755)
    calls = folder / "calls"
    environment = {"PATH": str(folder), "CALLS": str(calls)}
    command = [str(shutil.which("bash")), str(SCRIPT)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return run, calls.read_text().splitlines() if calls.exists() else []


@pytest.mark.parametrize(
    "programs",
    [
        {"id": ROOT, "apt_get": PASSES},
        {"id": USER, "apt_get": PASSES, "sudo": 'shift; [[ $1 == true ]] || exec "$@"'},
    ],
    ids=["root", "passwordless sudo"],
)
def test_missing_packages_are_installed_quietly(tmp_path: Path, programs: dict[str, str]) -> None:
    run, calls = install(tmp_path, **programs)
    assert (run.returncode, run.stdout) == (0, "")
    assert run.stderr == f"installing {PACKAGES} for the tests\n"
    assert [call.split()[3] for call in calls] == ["update", "install"]
    assert calls[1].endswith(PACKAGES)


def test_packages_that_are_there_are_left_alone(tmp_path: Path) -> None:
    run, calls = install(tmp_path, id=ROOT, apt_get=PASSES, chromium="", chromedriver="", pgbouncer="")
    assert (run.returncode, run.stdout, run.stderr, calls) == (0, "", "", [])


@pytest.mark.parametrize(
    ("there", "missing", "skipped"),
    [
        ("chromium chromedriver", "pgbouncer", SKIPPED[1:]),
        ("pgbouncer chromium", "chromium-driver", SKIPPED[:1]),
    ],
    ids=["pooler", "driver"],
)
def test_only_the_missing_package_is_asked_for(
    tmp_path: Path, there: str, missing: str, skipped: list[str]
) -> None:
    run, calls = install(tmp_path, id=ROOT, apt_get=PASSES, **dict.fromkeys(there.split(), ""))
    assert calls[1].endswith(f"--no-install-recommends {missing}")
    (tmp_path / "without").mkdir()
    run, _ = install(tmp_path / "without", id=ROOT, **dict.fromkeys(there.split(), ""))
    assert run.stderr.splitlines()[1:] == skipped


@pytest.mark.parametrize(
    ("programs", "reason"),
    [
        ({"id": ROOT}, "there is no apt-get here; install them yourself to run these tests"),
        ({"id": USER, "apt_get": PASSES}, "that needs root or sudo without a password"),
        ({"id": USER, "apt_get": PASSES, "sudo": ASKS}, "that needs root or sudo without a password"),
        ({"id": ROOT, "apt_get": "echo first; echo no network >&2; exit 100"}, "apt-get failed: no network"),
    ],
    ids=["no apt-get", "no sudo", "sudo with a password", "apt-get fails"],
)
def test_packages_that_cannot_be_installed_are_reported(
    tmp_path: Path, programs: dict[str, str], reason: str
) -> None:
    run, calls = install(tmp_path, **programs)
    warning = f"warning: {PACKAGES} cannot be installed: {reason}"
    assert run.returncode == 0
    assert run.stderr.splitlines()[-3:] == [warning, *SKIPPED]
    assert calls == []
