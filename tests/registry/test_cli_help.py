"""The help of every group and command, asked for and not."""

from __future__ import annotations

import pytest

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
