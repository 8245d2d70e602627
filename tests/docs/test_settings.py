"""The page on settings: its files set what its screen shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from meteora_registry.schemas.settings import UserSettings
from support.pages import example_of
from support.program import Run

PAGE = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")


def test_screen_is_what_the_two_files_and_the_variable_give(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "config" / "meteora-registry"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(example_of("docs/settings.md", "user file"))
    (tmp_path / "meteora.toml").write_text(example_of("docs/settings.md", "project file"))
    monkeypatch.delenv("METEORA_HOME")
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("METEORA_STORE", "file:///mnt/team/adapters")
    command, *screen = example_of("docs/settings.md", "screen").splitlines()
    result = run(*command.removeprefix("$ meteora-registry ").split())
    assert result.stdout.splitlines()[: len(screen)] == screen


def test_every_key_is_in_the_table_of_the_page() -> None:
    keys = re.findall(r"^\|.*\| `(\w+)` \| [^|]*\|$", PAGE, re.MULTILINE)
    assert keys == ["home", "catalog", "store", "policy", "base_aliases"]
    assert set(keys) == UserSettings.model_fields.keys()
