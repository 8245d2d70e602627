from __future__ import annotations

import os
import pty
import sys

import pytest

from meteora_registry.files.progress import chunks_of
from meteora_registry.registry.cli import progress


def show_progress(monkeypatch: pytest.MonkeyPatch) -> str:
    """What half of some work writes to a terminal on stderr."""
    program, near = pty.openpty()
    with os.fdopen(near, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        patch.setenv("TERM", "xterm")
        with progress.progress_bar("storing [red]legal", 1000) as advance:
            assert advance is not None
            advance(100)
            advance(400)
        stderr.write("END")
        stderr.flush()
        out = ""
        while not out.endswith("END"):
            out += os.read(program, 65536).decode()
    os.close(program)
    return out


def test_a_bar_shows_how_far_the_work_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_DELAY_SECONDS", -1.0)
    out = show_progress(monkeypatch)
    assert "storing [red]legal" in out
    assert "0.5/1.0 kB" in out


def test_quick_work_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_DELAY_SECONDS", float("inf"))
    assert show_progress(monkeypatch) == "END"


def test_without_a_terminal_there_is_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar("storing", 1000) as advance:
        assert advance is None
    assert capsys.readouterr() == ("", "")


def test_chunks_add_up_to_how_far_a_step_is() -> None:
    told: list[tuple[str, int, int]] = []
    count = chunks_of(lambda *step: told.append(step), "hashing", 10)
    assert count is not None
    count(4)
    count(6)
    assert told == [("hashing", 4, 10), ("hashing", 10, 10)]
    assert chunks_of(None, "hashing", 10) is None
