"""Standard streams that are closed, full, or have no reader, and terminals that are none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.home import Home
from support import warm
from support.catalogued import new_adapter
from support.program import PROGRAM
from support.small_adapters import make_adapter

TEXT, JSON, REPORT = ["list"], ["list", "--format", "json"], ["validate", "summarise"]
FAILING = ["show", "nobody"]


# The redirections of bash, in a process that is warm already.
REDIRECTED = """
import os, re, sys
from support.warm import open_streams, run_as_program
for number, target in re.findall(r"(\\d)[<>](\\S+)", sys.argv[1]):
    os.close(int(number))
    if target != "&-":
        assert os.open(target, os.O_WRONLY) == int(number)
open_streams()
run_as_program(sys.argv[2:])
"""
WITHOUT_FOLDER = """
import os, sys
from support.warm import run_as_program
os.mkdir("gone")
os.chdir("gone")
os.rmdir("../gone")
run_as_program(sys.argv[1:])
"""
# Read by an interpreter when it starts.
LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def run_redirected(
    folder: Path, arguments: list[str], redirection: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command with its streams redirected as bash does, the cheapest ones indeed by bash."""
    command: list[str | Path] = [sys.executable, "-c", REDIRECTED, redirection, PROGRAM, *arguments]
    run = warm.run
    is_closed = redirection.endswith("&-")
    if (is_closed and arguments in (["--help"], FAILING)) or LOCALE.items() <= variables.items():
        command = ["bash", "-c", f'exec "$0" "$@" {redirection}', PROGRAM, *arguments]
        run = subprocess.run
    return run(
        command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, errors="replace"
    )


@pytest.fixture
def folder(home: Home, tmp_path: Path) -> Path:
    """The current folder of a command, with an adapter that is catalogued, too."""
    with Catalog.open(home) as catalog:
        catalog.add_version(new_adapter(license="lizenz ä"))
    make_adapter(tmp_path / "summarise")
    return tmp_path


@pytest.mark.parametrize(
    "arguments", [TEXT, JSON, REPORT, ["--help"]], ids=["text", "json", "report", "help"]
)
@pytest.mark.parametrize(
    ("redirection", "reason"),
    [("1>&-", "bad file descriptor"), ("1>/dev/full", "no space left on device")],
    ids=["closed", "full"],
)
def test_stdout_that_takes_nothing_is_an_error_that_names_it(
    folder: Path, arguments: list[str], redirection: str, reason: str
) -> None:
    done = run_redirected(folder, arguments, redirection)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: `stdout`: {reason}\n")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"], ids=["closed", "full"])
@pytest.mark.parametrize(("arguments", "code"), [(JSON, 0), (FAILING, 1)], ids=["done", "refused"])
def test_stderr_that_takes_nothing_changes_no_exit_code(
    folder: Path, arguments: list[str], code: int, redirection: str
) -> None:
    done = run_redirected(folder, arguments, redirection)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout == run_redirected(folder, arguments).stdout


@pytest.mark.parametrize("arguments", [JSON, ["remove", "legal", "--for-good"]], ids=["list", "remove"])
def test_closed_stdin_is_like_one_that_ended(folder: Path, arguments: list[str]) -> None:
    done = run_redirected(folder, arguments, "0<&-")
    assert (done.returncode, done.stderr) == (0, "")


def test_adding_with_every_stream_closed_writes_no_message_into_a_blob(folder: Path) -> None:
    where = ["--home", "other"]
    added = run_redirected(folder, [*where, "add", "summarise"], "0<&- 1>&- 2>&-")
    # The result could not be printed, after it was recorded.
    assert added.returncode == 2
    verified = run_redirected(folder, [*where, "store", "verify"])
    assert verified.stderr == "2 blobs were read, 0 of them are not whole\n"


@pytest.mark.parametrize("arguments", [TEXT, JSON, REPORT], ids=["text", "json", "report"])
def test_reader_that_left_ends_a_command_quietly(folder: Path, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = warm.run([PROGRAM, *arguments], cwd=folder, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"COLUMNS": "0"},
        {"COLUMNS": "many", "LINES": "-1"},
        {"NO_COLOR": "1", "TERM": "dumb"},
        {"TERM": ""},
    ],
    ids=lambda variables: " ".join(f"{name}={value}" for name, value in variables.items()),
)
@pytest.mark.parametrize("arguments", [TEXT, REPORT], ids=["text", "report"])
def test_locale_and_terminal_stop_no_command(
    folder: Path, arguments: list[str], variables: dict[str, str]
) -> None:
    (folder / "summarise").rename(folder / "ä漢")
    arguments = [each.replace("summarise", "ä漢") for each in arguments]
    done = run_redirected(folder, arguments, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_locale_of_an_interpreter_stops_no_report(folder: Path) -> None:
    (folder / "summarise").rename(folder / "ä漢")
    done = run_redirected(folder, ["validate", "ä漢"], **LOCALE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_deleted_current_folder_stops_only_what_needs_one(folder: Path) -> None:
    listed = subprocess.run(
        ["bash", "-c", 'mkdir gone && cd gone && rmdir ../gone && exec "$0" "$@"', PROGRAM, *TEXT],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert (listed.returncode, listed.stderr) == (0, "")
    relative = warm.run(
        [sys.executable, "-c", WITHOUT_FOLDER, PROGRAM, "--home", "here", *TEXT],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert relative.returncode == 2
    assert relative.stderr.splitlines() == [
        "error: `here` cannot be found: this account has no home, or the current folder is gone",
        "hint: name an absolute path with `--home`, or in METEORA_HOME",
    ]
