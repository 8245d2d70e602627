from __future__ import annotations

import os
import pty
import sys

import pytest

from meteora_registry.files.progress import Bytes
from meteora_registry.registry.cli import progress


def show_progress(monkeypatch: pytest.MonkeyPatch, total: int) -> str:
    """Return what half of some work writes to a terminal on stderr."""
    program, near = pty.openpty()
    with os.fdopen(near, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        patch.setenv("TERM", "xterm")
        with progress.progress_bar() as report:
            report("storing [red]legal", 100, total)
            report("storing [red]legal", 500, total)
        stderr.write("END")
        stderr.flush()
        out = ""
        while not out.endswith("END"):
            out += os.read(program, 65536).decode()
    os.close(program)
    return out


@pytest.mark.parametrize(
    ("total", "shown"), [(Bytes(1000), "0.5/1.0 kB"), (1000, "500/1000")], ids=["bytes", "items"]
)
def test_a_bar_shows_how_far_the_work_is(monkeypatch: pytest.MonkeyPatch, total: int, shown: str) -> None:
    monkeypatch.setattr(progress, "_DELAY_SECONDS", -1.0)
    out = show_progress(monkeypatch, total)
    assert "storing [red]legal" in out
    assert shown in out


def test_quick_work_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_DELAY_SECONDS", float("inf"))
    assert show_progress(monkeypatch, 1000) == "END"


def test_without_a_terminal_quick_work_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar() as report:
        report("storing", 500, 1000)
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_long_work_prints_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    now_and_then = progress.Lines(seconds=0.0)
    now_and_then("routed", 8, 40)
    now_and_then("downloading", 5_000_000, Bytes(10_000_000))
    now_and_then("reading", 3, 0)
    seldom = progress.Lines(seconds=float("inf"))
    seldom("routed", 16, 40)
    assert capsys.readouterr() == ("", "routed: 8 of 40\ndownloading: 5.0 MB of 10.0 MB\nreading: 3\n")
