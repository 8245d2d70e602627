"""The README's promises, kept: its session runs as written, and its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from support.models import LOADS_WITH_PEFT, make_adapter, tiny_llama
from support.pages import example_of
from support.program import PROGRAM, Run
from support.task_data import save_text_base, write_task_data

ROOT = Path(__file__).parents[2]


def test_the_session_has_five_commands_and_runs_as_it_stands(run: Run, tmp_path: Path) -> None:
    for seed, name in enumerate(("legal", "medical")):
        make_adapter(
            tiny_llama, tmp_path / "adapters" / name, seed=seed, r=4 + seed, target_modules=["q_proj"]
        )
    commands = example_of("README.md", "session").splitlines()
    assert len(commands) == 5
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == PROGRAM.name
        result = run(*arguments)
        assert result.returncode == 0, f"{command}\n{result.stderr}"


@LOADS_WITH_PEFT
def test_the_python_example_runs_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("legal", "medical")
    for seed, name in enumerate(names):
        make_adapter(tiny_llama, Path("adapters", name), seed=seed, r=4 + seed, target_modules=["q_proj"])
    save_text_base(Path("base"))
    write_task_data(Path("data"), names)
    exec(example_of("README.md", "python"), {})
    one, two, three = capsys.readouterr().out.splitlines()
    assert one
    assert re.search(r"\[\(\('(legal|medical)', '(legal|medical)'\), [01]\.[0-9]+\)\]$", two), two
    assert three.startswith("['")


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_the_docs_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target
