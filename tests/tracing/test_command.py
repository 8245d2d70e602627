"""``trace`` on the command line: text with and without colour, JSON, the page, and what is refused."""

from __future__ import annotations

import io
import json
import os
import pty
import re
from functools import partial
from pathlib import Path

import pytest

from meteora_registry.registry.cli import trace_text
from meteora_registry.schemas.trace import Trace
from support.answering import Workplace, make_workplace
from support.models import LOADS_WITH_PEFT
from support.program import Run
from support.traces import two_layer_trace

pytestmark = [LOADS_WITH_PEFT]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return make_workplace(tmp_path_factory.mktemp("trace"))


@pytest.fixture
def run(run: Run, workplace: Workplace) -> Run:
    return partial(run, "trace", workplace.bundle, "--base", workplace.base)


def test_trace_prints_legend_and_marked_text(run: Run) -> None:
    result = run("--prompt", "w1 w2 w3", "--max-new-tokens", "2")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[:5] == [
        "bundle   bundle",
        "base     org/base",
        "scope    token",
        "tokens   3 of the prompt, 2 of the answer",
        "modules  4",
    ]
    assert [line.split()[:2] for line in lines[6:9]] == [["A", "one"], ["B", "two"], ["C", "three"]]
    prompt = lines[lines.index("prompt:") + 1]
    assert re.sub(r"\[[A-C]:|\]", "", prompt) == "w1 w2 w3"
    assert "\x1b" not in result.stdout
    assert "the gate is not fitted" in result.stderr


def test_trace_prints_the_document_as_json(run: Run) -> None:
    result = run("--prompt", "w1 w2 w3", "--max-new-tokens", "2", "--format", "json")
    trace = Trace.from_value(json.loads(result.stdout), what="stdout")
    assert (trace.bundle, trace.scope, len(trace.tokens), len(trace.modules)) == ("bundle", "token", 5, 4)


def test_prompt_is_read_from_stdin(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"w7 w8")))
    result = run("--prompt", "-", "--max-new-tokens", "0")
    assert "tokens   2 of the prompt, 0 of the answer" in result.stdout


def test_prompt_that_is_no_text_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    result = run("--prompt", "-")
    assert (result.returncode, result.stderr) == (2, "error: the prompt on stdin is not UTF-8\n")


def test_page_replaces_what_is_there(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "trace.html"
    page.write_text("old")
    result = run("--prompt", "w1", "--max-new-tokens", "1", "--html", str(page))
    assert result.returncode == 0, result.stderr
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert [path.name for path in tmp_path.iterdir()] == ["trace.html"]


def test_page_in_no_folder_is_refused_before_the_base_is_loaded(run: Run, tmp_path: Path) -> None:
    result = run("--base", "nowhere", "--prompt", "w1", "--html", str(tmp_path / "none" / "trace.html"))
    assert result.returncode == 2
    assert "there is no folder" in result.stderr


def test_prompt_longer_than_the_base_takes_is_refused(run: Run) -> None:
    result = run("--prompt", "w1", "--max-new-tokens", "64")
    assert result.returncode == 2
    assert result.stderr.startswith(
        "error: the prompt has 1 tokens and the answer up to 64, the base takes 64 together\n"
    )


def printed(trace: Trace, capsys: pytest.CaptureFixture[str]) -> str:
    trace_text.print_trace(trace)
    return capsys.readouterr().out


def test_runs_are_marked_with_their_letter(capsys: pytest.CaptureFixture[str]) -> None:
    trace = two_layer_trace(["SELECT", " a\n b", "\x1b[2J\n", "!"])
    assert printed(trace, capsys).splitlines()[-7:] == [
        "prompt:",
        "[A:SELECT][B: a\u21b5",
        " b]",
        "",
        "answer:",
        "[B:\\x1b[2J\u21b5]",
        "[-:!]",
    ]


def test_colours_add_nothing_to_the_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = printed(two_layer_trace(), capsys)
    monkeypatch.setattr(trace_text, "colours_wanted", lambda: True)
    coloured = printed(two_layer_trace(), capsys)
    assert "\x1b[38;2;0;0;0m\x1b[48;2;133;160;245mSELECT\x1b[0m" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
    ids=["terminal", "NO_COLOR", "dumb"],
)
def test_terminal_has_colours_unless_it_should_not(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], coloured: bool
) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb") as screen, os.fdopen(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        trace_text.print_trace(two_layer_trace())
        terminal.flush()
        shown = b""
        while b"answer:" not in shown:
            shown += screen.read1(1 << 16)
    assert (b"\x1b[48;2;" in shown) is coloured
