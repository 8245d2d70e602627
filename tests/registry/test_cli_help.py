"""The help of every group and command, asked for and not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from meteora_registry.registry.cli.groups import LazyGroup
from meteora_registry.registry.cli.main import run
from support.command_tree import Command, every_command, every_group


@pytest.mark.parametrize("group", every_group(), ids=lambda group: group.name)
def test_bare_group_prints_its_help_on_stderr_and_is_a_usage_error(
    group: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(group.words) == 2
    bare = capsys.readouterr()
    assert run([*group.words, "--help"]) == 0
    asked = capsys.readouterr()
    assert (bare.out, bare.err) == ("", asked.out)
    assert bare.err.startswith(" ".join(["Usage: meteora-registry", *group.words, "[OPTIONS]"]))
    assert len(bare.err.splitlines()) > 5


@pytest.mark.parametrize("command", every_command(), ids=lambda command: command.name)
def test_help_of_a_command_has_an_example(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command.words, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"  meteora-registry {command.name}" in out


def every_listed_command() -> list[tuple[Command, str]]:
    """Return each command that a group lists, with the summary in the group's table."""
    summaries = {
        (*group.words, name): listed.summary
        for group in every_group()
        if isinstance(group.click, LazyGroup)
        for name, listed in group.click.table.items()
    }
    return [(each, summaries[each.words]) for each in (*every_group(), *every_command()) if each.words]


@pytest.mark.parametrize(
    ("command", "summary"),
    [pytest.param(command, summary, id=command.name) for command, summary in every_listed_command()],
)
def test_summary_of_a_command_is_the_first_sentence_of_its_help(command: Command, summary: str) -> None:
    first_line = (command.click.help or "").splitlines()[0]
    assert first_line == f"{summary}."
    assert len(summary) <= 60
    assert command.click.name == command.words[-1]


@pytest.mark.parametrize("group", every_group(), ids=lambda group: group.name)
def test_help_of_a_group_lists_its_commands_with_their_summaries(
    group: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*group.words, "--help"]) == 0
    shown = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert isinstance(group.click, LazyGroup)
    for name, listed in group.click.table.items():
        assert [name, listed.summary] in shown


EVERY_HELP = """
import sys
from meteora_registry.registry.cli.main import run
sys.exit(max(run([*words.split(), "--help"]) for words in sys.argv[1:]))
"""


def test_help_does_not_depend_on_the_settings_of_the_hub() -> None:
    words = [" ".join(each.words) for each in (*every_group(), *every_command())]
    done = subprocess.run(
        [sys.executable, "-c", EVERY_HELP, *words],
        env=os.environ | {"HF_HUB_DOWNLOAD_TIMEOUT": "soon"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("Usage: meteora-registry") == len(words)
