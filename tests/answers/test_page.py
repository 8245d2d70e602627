"""The page from adapters to answers: its commands run as they are, and its transcript is what they show."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from meteora_registry.registry.cli import main
from support import warm
from support.conversations import MEMBERS, save_chat_base
from support.models import LOADS_WITH_PEFT, make_adapter, tiny_llama
from support.pages import example_of
from support.program import PROGRAM
from support.task_data import write_task_data
from support.terminal import Conversation

pytestmark = [LOADS_WITH_PEFT]

PROMPT = "\n> "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    save_chat_base(folder / "base")
    write_task_data(folder / "data", MEMBERS, samples=40)
    for seed, name in enumerate(MEMBERS):
        make_adapter(tiny_llama, folder / "adapters" / name, seed=seed, r=4 + seed, target_modules=["q_proj"])
    for text in (example_of("docs/answers.md", "bundle"), example_of("docs/answers.md", "fit")):
        for command in text.splitlines():
            assert run_in(folder, command) == 0, command
    return folder


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"METEORA_HOME": str(folder / "home")}


def run_in(folder: Path, command: str) -> int:
    """Run a command of the page in the folder, and return its exit code."""
    program, *arguments = shlex.split(command)
    assert program == PROGRAM.name
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("METEORA_HOME", str(folder / "home"))
        return main.run(arguments)


@pytest.mark.parametrize("command", example_of("docs/answers.md", "generate").splitlines())
def test_command_of_the_page_answers_and_says_who(
    folder: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run_in(folder, command) == 0
    printed = capsys.readouterr()
    assert printed.out.strip()
    member = re.search(r"--member (\w+)", command)
    who = f"{member[1]}, forced" if member else r"(legal|medical) \d\.\d\d|base"
    assert re.fullmatch(who, printed.err.splitlines()[0])


def test_transcript_of_the_page_is_that_of_the_program(folder: Path) -> None:
    page = example_of("docs/answers.md", "transcript")
    typed = re.findall(r"^> (.+)$", page, re.MULTILINE)
    options = ("chat", "fitted", "--max-tokens", 5)
    with Conversation(*options, environment=environment(folder), folder=folder) as terminal:
        terminal.read_until("leaves\n")
        shown = terminal.read_until("> ")
        for line in typed:
            terminal.type(f"{line}\n")
            shown += terminal.read_until("/exit\n" if line == "/exit" else PROMPT)
        assert terminal.end() == (0, "")
    assert without_numbers(shown) == without_numbers(page)
    assert max(map(len, page.splitlines())) <= 80


def without_numbers(text: str) -> str:
    """Return a transcript without what may differ in the last digit from machine to machine."""
    return re.sub(r"#+", "#", re.sub(r"\d+\.\d+", "0.0", text))


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    command = shlex.split(example_of("docs/answers.md", "serve"))
    # A port that is free, in place of the page's.
    command = [str(PROGRAM), *command[1:-1], "0"]
    with warm.RuntimePopen(
        command, cwd=folder, env=environment(folder), stderr=subprocess.PIPE, text=True
    ) as server:
        found = None
        while found is None:
            line = server.stderr.readline()
            assert line, "the server ended"
            found = re.search(r"listening on (http://\S+)/v1", line)
        yield found[1]
        server.terminate()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_requests_of_the_page_are_answered(address: str) -> None:
    lines = example_of("docs/answers.md", "curl").splitlines()
    answers = []
    for line in lines:
        command = shlex.split(line.replace("http://127.0.0.1:8000", address))
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        answers.append(json.loads(done.stdout))
    models, *completions = answers
    names = ["fitted", "fitted/legal", "fitted/medical", "fitted/base"]
    assert [model["id"] for model in models["data"]] == names
    assert [(each["model"], each["meteora"]["forced"]) for each in completions] == [
        ("fitted", False),
        ("fitted/medical", True),
        ("fitted/base", True),
    ]
    assert [each["meteora"]["member"] for each in completions[1:]] == ["medical", None]
    assert all(each["choices"][0]["message"]["content"] for each in completions)


def test_python_of_the_page_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    exec(example_of("docs/answers.md", "python"), {})
    answer, who = capsys.readouterr().out.splitlines()
    assert answer
    assert re.match(r" \('(legal|medical)',\) \d\.\d+ \{'legal': ", who)
