"""Completion of commands and names by real shells, and the suggestions for what was misspelled."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.cli.main import run
from meteora_registry.registry.home import Home
from support import warm
from support.catalogued import new_adapter
from support.program import PROGRAM


@pytest.fixture
def names(home: Home, catalog: Catalog) -> tuple[str, ...]:
    found = ("legal", "legal-de", "medical")
    for name in found:
        catalog.add_version(new_adapter(name, name))
    return found


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the program prints for bash, in a file."""
    path = tmp_path_factory.mktemp("bash") / "completion"
    with path.open("wb") as file:
        subprocess.run([PROGRAM, "completion", "bash"], stdout=file, check=True)
    return path


def complete(script: Path, *words: str, shown: str = "${COMPREPLY[@]}") -> list[str]:
    """Return what bash completes the last word to, or what it is asked to complete by itself, ``$ASKED``."""
    line = " ".join(words)
    program = f"""
        PATH={Path(PROGRAM).parent}:$PATH
        source {script}
        COMP_WORDS=({line}) COMP_CWORD={len(words) - 1}
        compopt() {{ ASKED=$2; }}
        _meteora_registry_completion meteora-registry
        printf '%s\\n' "{shown}"
    """
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def answer(*words: str, **environment: str) -> list[str]:
    """Return the kind of each word and the word, as the program answers a shell."""
    asked = {
        "_METEORA_REGISTRY_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    done = warm.run([PROGRAM], env=os.environ | asked | environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("fu",), ["plain,fuse"]),
        (("show", "leg"), ["plain,legal", "plain,legal-de"]),
        (("fuse", "medical", "legal-"), ["plain,legal-de"]),
        (("verify", "med"), ["dir,med", "plain,medical"]),
        (("diff", "leg"), ["dir,leg", "plain,legal", "plain,legal-de"]),
        (("diff", "medical", "legal-"), ["dir,legal-", "plain,legal-de"]),
        (("show", "x"), []),
    ],
    ids=["command", "name", "second name", "name or folder", "first of two", "second of two", "nothing"],
)
def test_commands_and_names_are_completed(
    names: tuple[str, ...], words: tuple[str, ...], expected: list[str]
) -> None:
    assert answer("meteora-registry", *words) == expected


@pytest.mark.parametrize("command", ["add", "diff", "verify"])
def test_folder_is_asked_for_where_one_may_be_named(home: Home, command: str) -> None:
    assert answer("meteora-registry", command, "check") == ["dir,check"]


def test_bash_takes_what_it_is_answered(names: tuple[str, ...], script: Path) -> None:
    assert complete(script, "meteora-registry", "fuse", "medical", "leg") == ["legal", "legal-de"]
    assert complete(script, "meteora-registry", "add", "check", shown="$ASKED") == ["dirnames"]


def test_completion_makes_no_catalog_and_reports_nothing(home: Home, tmp_path: Path) -> None:
    asked = ("meteora-registry", "show", "x")
    assert answer(*asked, METEORA_HOME=str(tmp_path / "none")) == []
    assert not (tmp_path / "none").exists()
    assert answer(*asked, METEORA_CATALOG="postgresql://127.0.0.1:1/none") == []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_script_for_another_shell_names_the_program(
    home: Home, capsys: pytest.CaptureFixture[str], shell: str
) -> None:
    assert run(["completion", shell]) == 0
    assert "meteora-registry" in capsys.readouterr().out


def test_misspelled_name_is_answered_with_those_like_it(
    home: Home, names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["show", "leagl"]) == 1
    assert "hint: did you mean `legal`" in capsys.readouterr().err
    assert run(["show", "quite-another"]) == 1
    assert "did you mean" not in capsys.readouterr().err


def test_versions_are_those_of_what_is_installed(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    lines = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert {"meteora-registry", "python", "torch", "peft", "transformers"} <= lines.keys()
